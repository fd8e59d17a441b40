"""`ensemble:URI|URI|...` models: several networks of one label space, their probabilities averaged.

Members keep weights, normalisation and architecture of their own; they lie on one device together.
Their order does not matter: they are sorted by digest.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline.errors import UsageError
from pipeline.models.loaded import Architecture, LoadedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import Preprocessing
    from pipeline.models.uri import ModelUri

BETWEEN: Final = "|"
_LEAST_P: Final = 1e-12


def uri_of(members: Sequence[str]) -> str:
    """Return the URI of an ensemble, or of the one model.

    Raises:
        UsageError: a URI holds the character that stands between members.
    """
    if len(members) == 1:
        return members[0]
    for uri in members:
        if BETWEEN in uri:
            raise UsageError(f"{uri}: a model of an ensemble has no {BETWEEN!r} in its URI")
    return "ensemble:" + BETWEEN.join(members)


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Load the members and put them together.

    Raises:
        UsageError: label spaces differ, two members are the same model, or weights are named for
            all of them.
    """
    from pipeline.models import load_model

    if not pretrained:
        raise UsageError(f"{uri.text}: --weights goes with one model; name a run: directory each")
    members = [load_model(m, label_space=space) for m in uri.name.split(BETWEEN)]
    return together(uri.text, members)


def together(text: str, members: Sequence[LoadedModel]) -> LoadedModel:
    """Return an ensemble of loaded models as one model, still without a digest.

    Raises:
        UsageError: label spaces differ, a member finds objects or takes depth, or two are the same
            model.
    """
    members = sorted(members, key=lambda m: m.digest)
    first = members[0]
    for member in members[1:]:
        if member.label_space != first.label_space:
            raise UsageError(
                f"{member.uri} speaks {member.label_space.name!r} and {first.uri} "
                f"{first.label_space.name!r}, and an ensemble has one label space; where they mean "
                "the same classes, name it with --label-space"
            )
    for one, other in pairwise(members):
        if one.digest == other.digest:
            raise UsageError(f"{one.uri} and {other.uri} are the same model: name it once")
    for member in members:
        if member.objects is not None:
            raise UsageError(f"{member.uri} finds objects: there is no mean of these; label by one")
        if getattr(member.module, "in_channels", 3) != 3:
            raise UsageError(f"{member.uri} takes more than colours: it labels alone")
    sizes = {(m.preprocessing.size, m.preprocessing.edge) for m in members}
    multiple = math.lcm(*(m.preprocessing.multiple for m in members))
    # Members of different sizes leave it open: `pipeline.predict.options` has the user choose.
    size, edge = sizes.pop() if len(sizes) == 1 else (None, None)
    preprocessing = replace(first.preprocessing, size=size, edge=edge, multiple=multiple)
    module = Ensemble([m.module for m in members], [m.preprocessing for m in members])
    options = {
        "members": [
            {"architecture": m.architecture.to_dict(), "preprocessing": m.preprocessing.to_dict()}
            for m in members
        ]
    }
    architecture = Architecture("ensemble", "mean", options)
    return LoadedModel(module, first.label_space, preprocessing, text, "", architecture)


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged at the size of the input.

    The input is normalised as for the first of them; others get it normalised as their own.
    """

    def __init__(self, modules: Sequence[nn.Module], prep: Sequence[Preprocessing]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)
        shape = (1, 3, 1, 1)
        mean, std = torch.tensor(prep[0].mean), torch.tensor(prep[0].std)
        # Not in the state dict: they follow from the architecture's options, which the digest has.
        for n, p in enumerate(prep):
            scale = (std / torch.tensor(p.std)).view(shape)
            shift = ((mean - torch.tensor(p.mean)) / torch.tensor(p.std)).view(shape)
            self.register_buffer(f"scale{n}", scale, persistent=False)
            self.register_buffer(f"shift{n}", shift, persistent=False)
        self._alike = [p.mean == prep[0].mean and p.std == prep[0].std for p in prep]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, float32 [N, C, H, W]."""
        size = (inputs.shape[2], inputs.shape[3])
        total: Tensor | None = None
        for n, member in enumerate(self.members):
            own = inputs
            if not self._alike[n]:
                scale, shift = self.get_buffer(f"scale{n}"), self.get_buffer(f"shift{n}")
                own = inputs * scale + shift
            logits = member(own).float()
            if tuple(logits.shape[2:]) != size:
                logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            p = logits.softmax(dim=1)
            total = p if total is None else total.add_(p)
        assert total is not None, "an ensemble has members"
        return (total / len(self.members)).clamp_min(_LEAST_P).log()
