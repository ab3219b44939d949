"The `itnet` command with two recipes of toys: for tests that need a process, or a run of seconds."
import sys, time
from dataclasses import dataclass
import torch
from torch import nn
import itnet.cli
from itnet.data.source import DataNotFound
from itnet.data.spec import Spec, accuracy
from itnet.training import recipe
from itnet.training.optim import Optim
from itnet.training.recipe import Recipe, Train


@dataclass(frozen=True)
class Sums:
    "Points in the plane; the class is the sign of the sum of their coordinates"
    batch_size: int = 32        # points per batch
    pause: float = 0.0          # seconds a batch takes
    there: bool = True          # can the data be found
    @property
    def spec(self): return Spec("image", inputs=2, outputs=2, shape=(), metric=accuracy(2))
    def splits(self):
        if not self.there: raise DataNotFound("sums", "train", ["explicit path: none given", "$ITNET_DATA: not set"])
        x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        items = [(a, int(a.sum() > 0)) for a in x]
        return {"train": items[:128], "validation": items[128:192], "test": items[192:]}
    def collate(self, items):
        time.sleep(self.pause)
        return {"x": torch.stack([a for a, _ in items]), "target": torch.tensor([b for _, b in items])}
    def checksums(self): return {"train": "none"}


@dataclass(frozen=True)
class MLP:
    "One hidden layer with dropout"
    width: int = 8              # hidden units
    dropout: float = 0.2        # share of hidden units left out
    def build_model(self, spec):
        return nn.Sequential(nn.Linear(2, self.width), nn.GELU(), nn.Dropout(self.dropout), nn.Linear(self.width, 2))


train = Train(steps=30, eval_every=10, threads=1, device="cpu")
for model in ("itnet", "mlp"): recipe.register(Recipe(f"sums/{model}", Sums(), MLP(), Optim(lr=0.05, warmup=2), train))
itnet.cli._recipes = lambda: recipe

if __name__ == "__main__":
    import toy_itnet            # the classes under the name that checkpoints record, whoever reads them
    sys.exit(itnet.cli.main())
