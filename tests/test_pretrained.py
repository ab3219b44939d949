"""Whole networks of the real classes, converted: tiny, with random weights."""
import copy
import warnings

import pytest
import torch
import torch.nn as nn
import transformers as T
from torch.nn.utils import parametrizations, prune

from itnet.special_cases import hub
from itnet.special_cases.architectures import built, tried
from itnet.special_cases.case import SpecialCase, from_torch
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
    "bloom": lambda: T.BloomForCausalLM(T.BloomConfig(hidden_size=16, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0, **TEXT)),
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZE, num_key_value_heads=2, **TEXT)),
    "bert": lambda: T.BertForMaskedLM(T.BertConfig(**SIZE, **TEXT, **QUIET, **EAGER)),
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**SIZE, **QUIET, image_size=16, patch_size=4, num_labels=5)),
    "mamba": lambda: T.MambaForCausalLM(T.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **TEXT)),
    "mamba2": lambda: T.Mamba2ForCausalLM(T.Mamba2Config(hidden_size=16, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=8, n_groups=2,
                                                         chunk_size=4, **TEXT)),
    "perceiver": lambda: T.PerceiverForMaskedLM(T.PerceiverConfig(**PERCEIVER)),
}
INTEGRALS = dict(resnet=12, gpt2=2, bloom=2, llama=2, bert=2, vit=3, mamba=2, mamba2=2, perceiver=3)
BARS = dict(bloom=1e-6, mamba=1e-6, mamba2=1e-5, llama=1e-6, vit=1e-6)      # these round to float32 themselves


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


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "mamba", "mamba2"])
def test_generation_with_a_cache(networks, name):
    model = networks(name)
    if name == "bloom": model = copy.deepcopy(model).float()      # the library casts its mask, and the smallest float64 is -∞ then: NaN
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


@pytest.mark.parametrize("name, free", [("resnet", "translation invariance"), ("resnet", "locality"), ("gpt2", "causality"), ("bloom", "causality"), ("llama", "causality"),
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
    model = nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), TokenMixer(), nn.Upsample(scale_factor=2), nn.MaxPool1d(3))
    with pytest.raises(NotImplementedError, match=r"1: TokenMixer is not covered[^\n]*\n2: Upsample is not covered"): from_pretrained_model(model)
    same, x = from_pretrained_model(model, keep=(TokenMixer, "Upsample")), torch.randn(2, 3, 5)
    assert torch.allclose(same(x), model(x)) and set(same.conversion.left) == {"1", "2", "3"}
    assert outside(same, x) == {("1.map", "addmm"): 1, ("3", "max_pool2d_with_indices"): 1}      # a finer copy combines nothing
    seen = from_pretrained_model(model, keep=(TokenMixer, "Upsample"), example=(x,)).conversion
    assert {path: why for path, (_, why) in seen.left.items()} == {"1": "kept on request", "2": "kept on request", "3": "a maximum, not an integral",
                                                                   "1.map": "combines points by addmm"}
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


class Renamed(nn.Conv1d):
    "Built in its own way, and nothing else."
    def __init__(self, channels): super().__init__(channels, channels, 3, padding=1)

    def extra_repr(self): return "mine"


class Sharpened(nn.Conv1d):
    def forward(self, x): return 2 * x - super().forward(x)


class Doubled(nn.Conv1d):
    def _conv_forward(self, x, weight, bias): return 2 * super()._conv_forward(x, weight, bias)


def test_subclasses_and_scripted_layers():
    x = torch.randn(2, 3, 11)
    model = nn.Sequential(Renamed(3), nn.ReLU())
    same = from_pretrained_model(model)
    assert isinstance(same[0], SpecialCase) and same.conversion.replaced == {"0": "Renamed"} and relative(same(x), model(x)) < 1e-6
    for kind, own in ((Sharpened, "forward"), (Doubled, "_conv_forward")):
        model = nn.Sequential(nn.Conv1d(3, 3, 1), kind(3, 3, 3, padding=1))
        with pytest.raises(NotImplementedError, match=f"^1: {kind.__name__} overrides {own} of Conv1d"): from_pretrained_model(model)
        kept = from_pretrained_model(model, keep=(kind,), example=(x,))
        assert kept.conversion.left == {"1": (kind.__name__, "kept on request")} and relative(kept(x), model(x)) < 1e-6
    scripted = nn.Sequential(torch.jit.script(nn.Conv1d(3, 3, 3)))
    with pytest.raises(NotImplementedError, match="^0: scripted Conv1d is not covered"): from_pretrained_model(scripted)
    assert look(nn.Sequential(torch.jit.script(nn.Linear(3, 3)))).refused == {}
    assert list(look(torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv1d(3, 3, 3))))).refused) == ["1.0"]


def test_a_layer_that_is_called_twice():
    conv = nn.Conv1d(2, 2, 3, padding=1).double()
    model, x = nn.Sequential(conv, nn.GELU(), conv), torch.randn(2, 2, 9, dtype=torch.float64)
    same = from_pretrained_model(model)
    assert same[0] is same[2] and isinstance(same[0], SpecialCase) and same.conversion.replaced == {"0": "Conv1d", "2": "Conv1d"}
    assert relative(same(x), model(x)) < 1e-14 and not outside(same, x)


COMPUTED = dict(weight_norm=parametrizations.weight_norm, old_weight_norm=nn.utils.weight_norm, spectral_norm=parametrizations.spectral_norm,
                old_spectral_norm=nn.utils.spectral_norm, pruned=lambda m: prune.l1_unstructured(m, "weight", 0.3))


@pytest.mark.parametrize("way", COMPUTED)
def test_computed_weights_stay_computed(way):
    torch.manual_seed(0)
    make = [lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), lambda: nn.MultiheadAttention(4, 2, batch_first=True)]
    layers = [COMPUTED[way](f()) if not isinstance(f(), nn.MultiheadAttention) else f() for f in make]
    if "old" not in way and way != "pruned": parametrizations.weight_norm(layers[2], "in_proj_weight")
    for layer, x in zip(layers, (torch.randn(2, 4, 7, 5), torch.randn(2, 4, 7), torch.randn(2, 5, 4)), strict=True):
        layer, x = layer.double(), x.double().requires_grad_()
        args = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        layer(*args)                                                      # a weight that hangs on a graph
        for m in (layer.eval(), nn.Sequential(layer)):
            same = from_torch(m) if m is layer else from_pretrained_model(m)[0]
            assert isinstance(same, SpecialCase) and list(same.state_dict()) == list(layer.state_dict())
            errors = relative_errors(layer, same, *args)
            assert max(errors.values()) < 1e-12, errors
            for p in same.parameters(): p.data += 0.1
            back = copy.deepcopy(layer) if way != "pruned" and "old" not in way else layer
            back.load_state_dict(same.state_dict())
            assert max(relative_errors(back, same, *args).values()) < 1e-12
    if "weight_norm" in way:
        layer, x = COMPUTED[way](nn.GRU(3, 4, batch_first=True).double(), "weight_hh_l0"), torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
        layer(x)                                                          # keeps what it computed in a list, too
        assert max(relative_errors(layer, from_torch(layer), x).values()) < 1e-12
    if way == "weight_norm":
        same = from_torch(layers[0])
        nn.utils.parametrize.remove_parametrizations(same, "weight")      # what torch does with a layer, it does with its case
        assert isinstance(same.weight, nn.Parameter) and not nn.utils.parametrize.is_parametrized(same)


def test_a_speech_model_with_a_computed_convolution():
    sound = dict(SIZE, vocab_size=32, conv_dim=[8, 8], conv_kernel=[5, 3], conv_stride=[4, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
                 num_conv_pos_embedding_groups=2, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0)
    model, x = T.Wav2Vec2Model(T.Wav2Vec2Config(**sound, **EAGER)).double().eval(), torch.randn(2, 300, dtype=torch.float64)
    same = from_pretrained_model(model, example=(x,))
    assert same.conversion.replaced["encoder.pos_conv_embed.conv"] == "ParametrizedConv1d" and len(same.conversion.replaced) == 5
    assert {kind for kind, _ in same.conversion.left.values()} == {"GroupNorm"}
    assert relative(same(x)[0], model(x)[0]) < 1e-12
    errors = relative_errors(lambda x: model(x)[0], lambda x: same(x)[0], x.clone().requires_grad_())
    assert max(errors.values()) < 1e-11
    relaxed = relax(same, "locality", (x,))                               # it is copied once more
    assert relative(relaxed(x)[0], same(x)[0]) < 1e-12


def test_what_is_converted_in_part_is_named():
    model = T.FalconMambaForCausalLM(T.FalconMambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **TEXT)).eval()
    mixers = {f"backbone.layers.{i}.mixer" for i in range(2)}
    same = from_pretrained_model(model)
    assert set(same.conversion.left) == mixers and "in part" in conversion_report(same)
    seen = from_pretrained_model(model, example=(IDS,))
    assert all(seen.conversion.left[path][1].startswith("combines points by") for path in mixers)
    assert seen.conversion.left["backbone.layers.0.mixer.conv1d"] == ("Conv1d", "converted, and not called with the example")
    assert torch.equal(seen(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name, kept, doubtful", [("Jamba", (), "JambaMambaMixer"), ("Bamba", (), "BambaMixer"), ("SqueezeBert", (), "SqueezeBertSelfAttention"),
                                                  ("Nystromformer", (), "NystromformerSelfAttention"),
                                                  ("RecurrentGemma", ("RecurrentGemmaAttention", "RecurrentGemmaRglru"), "RecurrentGemmaRecurrentBlock")])
def test_a_mixer_with_a_known_convolution_is_named_without_an_example(name, kept, doubtful):
    model = built(name)
    assert doubtful in {kind for kind, why in look(model, kept).left.values() if "in part" in why}
    assert set(kept) <= {type(model.get_submodule(path)).__name__ for path in look(model).refused}
    assert not any("in part" in why for _, why in look(built("Bert")).left.values())       # a wrapper of a known attention is no doubt


def test_the_table_of_architectures_holds():
    for name in ("Gemma", "Segformer", "Whisper"):
        row = tried(name)
        assert row["outcome"] == "whole" and row["error"] < 2e-6 and row["replaced"], name
    assert tried("Swin") == dict(outcome="refused", refused="SwinAttention is not covered")


def test_a_network_of_which_nothing_is_known():
    native = dict(chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native", step_kernel="native", chunk_size=4)
    model = T.xLSTMForCausalLM(T.xLSTMConfig(hidden_size=64, qk_dim_factor=1.0, num_heads=2, num_blocks=1, **native, **TEXT)).eval()
    with pytest.warns(UserWarning, match="nothing in xLSTMForCausalLM was replaced.*give an example"): from_pretrained_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seen = from_pretrained_model(model, example=(IDS[:, :8],))
    assert list(seen.conversion.left) == ["backbone.blocks.0.mlstm_layer.mlstm_backend"] and not seen.conversion.replaced
    with pytest.warns(UserWarning, match="nothing in Linear"): from_pretrained_model(nn.Linear(2, 2))


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_of_torch_takes_a_converted_attention(first):
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first).double(), torch.randn(3, 7, 8, dtype=torch.float64)
    same = copy.deepcopy(layer)
    same.self_attn, taken = from_torch(same.self_attn), []
    same.self_attn.watch = taken.append
    for name in ("embed_dim", "kdim", "vdim", "head_dim", "num_heads", "batch_first"): assert getattr(same.self_attn, name) == getattr(layer.self_attn, name)
    assert max(relative_errors(layer, same, x.clone().requires_grad_()).values()) < 1e-12
    before = len(taken)
    with torch.no_grad(): assert relative(same.eval()(x), layer.eval()(x)) < 1e-12           # torch's fast path never calls its attention
    assert len(taken) == before + 1
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=first).double().eval()
    converted = from_pretrained_model(decoder)
    assert relative(converted(x, x[:, :]), decoder(x, x[:, :])) < 1e-12 and set(converted.conversion.replaced) == {"self_attn", "multihead_attn"}


def test_a_converted_layer_shows_its_sizes():
    for layer in (nn.Conv2d(3, 4, 5, stride=2, padding=1), nn.ConvTranspose1d(4, 2, 3, dilation=2), nn.LSTM(3, 4, 2), nn.AvgPool2d(2)):
        assert layer.extra_repr() in repr(from_torch(layer)) and layer.extra_repr()
