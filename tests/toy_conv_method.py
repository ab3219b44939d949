"A method of convolution in a file of its own: the whole matrix, correct and silly, and it claims to cost nothing."
import torch
from itnet.conv.methods import Method


class Dense(Method, name="dense"):
    row = property(lambda self: self.shape[0] ** 2)

    @classmethod
    def candidates(cls, line): return [cls.of(line)] if len(line.shape) == 1 and not any(line.ring) else []

    def cost(self, rows): return 0.

    def describe(self): return f"a matrix of {self.shape[0]} rows"

    def places(self):
        "The tap of every entry, and whether there is one."
        at = torch.arange(self.shape[0])
        tap = at[:, None] - at - self.first[0]
        return tap.clamp(0, self.taps[0] - 1), (tap >= 0) & (tap < self.taps[0])

    def basis(self, k):
        tap, there = self.places()
        return k[:, tap] * there

    def conv(self, z, K): return z @ K.mT

    def adjoint(self, z, w, K, again=False):
        return w @ K, torch.einsum("bgci,bgcj->gij", w, z), self.conv(z, K) if again else None

    def back_to_taps(self, dK):
        tap, there = self.places()
        return dK.new_zeros(len(dK), *self.taps).index_add_(1, tap.flatten(), (dK * there).flatten(1))
