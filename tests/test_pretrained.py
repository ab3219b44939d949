"""Whole networks of the real classes, converted: tiny, with random weights."""
import copy

import pytest
import torch
import torch.nn as nn
import transformers as T

from itnet.special_cases import hub
from itnet.special_cases.case import SpecialCase
from itnet.special_cases.equality import relative_errors
from itnet.special_cases.pretrained import conversion_report, from_pretrained_model, look, outside
from itnet.special_cases.relaxation import constraints_of, freed, relax

IDS = torch.randint(1, 50, (2, 11), generator=torch.Generator().manual_seed(0))
TEXT = dict(vocab_size=50, bos_token_id=0, eos_token_id=None, pad_token_id=0)
SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
EAGER = dict(attn_implementation="eager")           # shares no attention with the rule attend
PERCEIVER = dict(num_latents=6, d_latents=16, d_model=16, qk_channels=16, v_channels=16, num_blocks=1, num_self_attends_per_block=1,
                 num_self_attention_heads=2, num_cross_attention_heads=2, vocab_size=50, max_position_embeddings=11, attention_probs_dropout_prob=0.0)

NETWORKS = {
    "resnet": lambda: T.ResNetForImageClassification(T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], num_labels=5)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **TEXT, **EAGER)),
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZE, num_key_value_heads=2, **TEXT)),
    "bert": lambda: T.BertForMaskedLM(T.BertConfig(**SIZE, **TEXT, **QUIET, **EAGER)),
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**SIZE, **QUIET, image_size=16, patch_size=4, num_labels=5)),
    "mamba": lambda: T.MambaForCausalLM(T.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **TEXT)),
    "mamba2": lambda: T.Mamba2ForCausalLM(T.Mamba2Config(hidden_size=16, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=8, n_groups=2,
                                                         chunk_size=4, **TEXT)),
    "perceiver": lambda: T.PerceiverForMaskedLM(T.PerceiverConfig(**PERCEIVER)),
}
INTEGRALS = dict(resnet=12, gpt2=2, llama=2, bert=2, vit=3, mamba=2, mamba2=2, perceiver=3)
BARS = dict(mamba=1e-6, mamba2=1e-5, llama=1e-6, vit=1e-6)      # these round to float32 themselves


@pytest.fixture(scope="module")
def networks():
    found = {}

    def get(name: str) -> nn.Module:
        if name not in found:
            torch.manual_seed(0)
            model = found[name] = NETWORKS[name]().double().eval()
            for path, p in model.named_parameters():
                if p.ndim > 1 and "A_log" not in path: p.data.normal_(0, 0.2)
        return found[name]

    return get


def call(name: str) -> dict:
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return dict(pixel_values=image) if name in ("resnet", "vit") else dict(inputs=IDS) if name == "perceiver" else dict(input_ids=IDS)


def relative(a, b): return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_same_logits_and_gradients(networks, name):
    model = networks(name)
    same = from_pretrained_model(model)
    assert type(same) is type(model) and list(same.state_dict()) == list(model.state_dict())
    assert len(same.conversion.replaced) == INTEGRALS[name]
    args, bar = call(name), BARS.get(name, 1e-10)
    with torch.no_grad(): assert relative(same(**args).logits, model(**args).logits) < bar
    errors = relative_errors(copy.deepcopy(model).train(), same.train(), **args)
    floor = 1e-3 if name == "vit" else 10 * bar                # gradients that vanish by symmetry, of scores rounded to float32
    assert max(errors.values()) < floor, {k: v for k, v in errors.items() if v > floor}
    assert set(op for _, op in outside(same.eval(), **args)) == ({"max_pool2d_with_indices"} if name == "resnet" else set())
    assert "integral" in conversion_report(same)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "mamba2"])
def test_generation_with_a_cache(networks, name):
    model = networks(name)
    same, there = from_pretrained_model(model), torch.ones_like(IDS)
    there[0, :4] = 0
    steps = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0)
    a, b = (m.generate(IDS, attention_mask=there, **steps) for m in (model, same))
    assert torch.equal(a.sequences, b.sequences) and len(b.logits) == 6
    assert max(relative(y, x) for x, y in zip(a.logits, b.logits)) < 1e-5


def test_a_wrong_kernel_is_noticed(networks):
    model = networks("bert")
    same = from_pretrained_model(model)

    class Flat(hub.HubAttention):
        def forward(self, query, *rest): return super().forward(0 * query, *rest)

    layer = same.bert.encoder.layer[0].attention.self
    layer.integral = Flat(layer.integral.original)
    assert relative(same(IDS).logits, model(IDS).logits) > 1e-2


@pytest.mark.parametrize("name, free", [("resnet", "translation invariance"), ("resnet", "locality"), ("gpt2", "causality"), ("llama", "causality"),
                                        ("mamba", "causality"), ("mamba2", "causality")])
def test_a_relaxed_network_starts_where_it_was(networks, name, free):
    same, args = from_pretrained_model(networks(name)), call(name)
    if free == "causality": args["use_cache"] = False
    relaxed = relax(same, free, args)
    assert any(free in held for held in constraints_of(same, args).values()) and all(found == [free] for found in freed(relaxed).values())
    with torch.no_grad():
        before = same(**args).logits
        assert relative(relaxed(**args).logits, before) < 1e-12
        for path, p in relaxed.named_parameters():
            if "freedom" in path and not p.any(): p.normal_(0, 0.3)
        assert relative(relaxed(**args).logits, before) > 1e-6
        if free == "causality":
            other = IDS.clone()
            other[:, -1] = other[:, -1] % 48 + 1                        # another last word
            first = lambda model, ids: model(ids, use_cache=False).logits[:, 0]
            assert torch.equal(first(same, other), first(same, IDS)) and relative(first(relaxed, other), first(relaxed, IDS)) > 1e-9
            with pytest.raises(NotImplementedError, match="use_cache=False"): relaxed.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_the_original_is_left_alone(networks):
    model = networks("gpt2")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    same = from_pretrained_model(model)
    assert not any(isinstance(m, SpecialCase) for m in model.modules()) and model.config._attn_implementation == "eager"
    for p in same.parameters(): p.data += 1
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert same.lm_head.weight is same.transformer.wte.weight                     # what was shared stays shared
    model_again = copy.deepcopy(model)
    model_again.load_state_dict(same.state_dict())
    assert relative(model_again(IDS).logits, same(IDS).logits) < 1e-10


def test_save_and_load(networks, tmp_path):
    model = networks("bert")
    from_pretrained_model(model).save_pretrained(tmp_path)
    back = T.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert type(back.bert.encoder.layer[0].attention.self).__name__ == "BertSelfAttention" and relative(back(IDS).logits, model(IDS).logits) < 1e-12


def test_weights_are_returned_as_the_implementation_says(networks):
    model = networks("gpt2")
    seen = model(IDS, output_attentions=True).attentions
    same = from_pretrained_model(model)                        # although the library has put its hooks on the layers by now
    for a, b in zip(seen, same(IDS, output_attentions=True).attentions, strict=True): assert relative(b, a) < 1e-10
    same.set_attn_implementation("sdpa")                       # masks are made in another way, and the integrals follow
    assert same(IDS, output_attentions=True).attentions == () and relative(same(IDS).logits, model(IDS).logits) < 1e-10


def test_converting_twice_changes_nothing(networks):
    once = from_pretrained_model(networks("vit"))
    twice = from_pretrained_model(once)
    assert len([m for m in twice.modules() if isinstance(m, SpecialCase)]) == len([m for m in once.modules() if isinstance(m, SpecialCase)])
    assert torch.equal(twice(**call("vit")).logits, once(**call("vit")).logits) and twice.conversion.replaced == once.conversion.replaced


def test_dropout_of_weights_is_refused_in_training():
    model = from_pretrained_model(T.GPT2LMHeadModel(T.GPT2Config(n_embd=8, n_layer=1, n_head=2, **TEXT)))
    model.eval()(IDS)
    with pytest.raises(NotImplementedError, match="GPT2Attention: dropout of attention weights=0.1"): model.train()(IDS)


class TokenMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(5, 5)

    def forward(self, x): return self.map(x)


def test_what_is_not_covered_is_named():
    model = nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), TokenMixer(), nn.Upsample(scale_factor=2), nn.MaxPool1d(2))
    with pytest.raises(NotImplementedError, match=r"1: TokenMixer is not covered[^\n]*\n2: Upsample is not covered"): from_pretrained_model(model)
    same, x = from_pretrained_model(model, keep=(TokenMixer, "Upsample")), torch.randn(2, 3, 5)
    assert torch.allclose(same(x), model(x)) and set(same.conversion.left) == {"1", "2", "3"}
    assert outside(same, x) == {("2", "upsample_nearest1d"): 1, ("3", "max_pool2d_with_indices"): 1}
    with pytest.raises(NotImplementedError, match="h.0.attn: GPTNeoAttention"):
        from_pretrained_model(T.GPTNeoModel(T.GPTNeoConfig(hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])))
    hooked = nn.Sequential(nn.Conv1d(1, 1, 1))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NotImplementedError, match="0: .*Conv1d has 1 hooks"): from_pretrained_model(hooked)


def test_an_observer_sees_what_the_code_does_between_layers():
    class Attends(nn.Module):
        def forward(self, x): return (x @ x.mT).softmax(-1) @ x + x.mean(1, keepdim=True) + x.cumsum(1)

    x = torch.randn(2, 7, 4)
    assert not look(Attends()).refused                         # no list of modules shows it
    assert outside(Attends(), x) == {("", "bmm"): 2, ("", "mean"): 1, ("", "cumsum"): 1}
    assert not outside(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Softmax(-1)), x)


def test_shared_layers_stay_shared():
    conv = nn.Conv1d(2, 2, 3, padding=1)
    block = nn.Sequential(conv, nn.ReLU())
    same = from_pretrained_model(nn.ModuleDict(dict(a=conv, b=block, c=nn.Sequential(block))))
    assert same["a"] is same["b"][0] is same["c"][0][0] and isinstance(same["a"], SpecialCase)
    assert isinstance(from_pretrained_model(conv), SpecialCase)


def test_transformer_of_torch_takes_no_fast_path():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2).double().eval()
    same, x = from_pretrained_model(model), torch.randn(2, 7, 8, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    with torch.no_grad():
        assert relative(same(x), model(x)) < 1e-12 and not outside(same, x)
        assert relative(same(x, src_key_padding_mask=padding)[~padding], model(x, src_key_padding_mask=padding)[~padding]) < 1e-12
