"""From a case to a training window, second half: images and occupancies of plans, on the training's device.

On a GPU the cases stay in its memory, so that it waits for no loader: what travels at each step are plans, some kB.

Legend: B windows of X x Y x Z voxels; C labels; codes, plans: `training.store`, `training.augment`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.augment import ELASTIC_NODES, WindowPlan
from training.config import ModelConfig
from training.store import Case

Batch = tuple[Tensor, Tensor, Tensor]  # image (B,1,D,H,W) float32, occupancy (B,C,..) uint8 0..8, supervised (B,C) bool

AIR_HU = -1000.0
_TEXTURE_VOXELS = 3  # between the nodes of the slow texture
_TEXTURE_GAIN = 1.8  # linear interpolation between nodes averages them: brings the deviation back to about 1


@dataclass(frozen=True)
class Voxels:
    """What windows of a case are rendered from, on any device: `codes` uint8 (X,Y,Z), and of a scan `hu` int16."""

    codes: Tensor
    hu: Tensor | None = None

    @classmethod
    def of(cls, case: Case) -> "Voxels":
        """Those of a case, still mapped from disk."""
        return cls(torch.from_numpy(case.codes), None if case.hu is None else torch.from_numpy(case.hu))

    def to(self, device: torch.device) -> "Voxels":
        """The same on a device."""
        return Voxels(self.codes.to(device), None if self.hu is None else self.hu.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.codes.nbytes + (0 if self.hu is None else self.hu.nbytes)


class CaseMemory:
    """Voxels of cases on a device, as many as fit into `most_bytes`; the one not seen for longest goes first."""

    def __init__(self, read: Callable[[int], Voxels], device: torch.device, most_bytes: int) -> None:
        self._read, self._device, self._most_bytes = read, device, most_bytes
        self._held: OrderedDict[int, Voxels] = OrderedDict()
        self._bytes = 0

    def __call__(self, number: int) -> Voxels:
        """The case of a number that `read` knows."""
        if number not in self._held:
            voxels = self._read(number).to(self._device)
            while self._held and self._bytes + voxels.nbytes > self._most_bytes:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
            self._held[number] = voxels
            self._bytes += voxels.nbytes
        self._held.move_to_end(number)
        return self._held[number]


@torch.no_grad()
def render(plans: WindowPlan, cases: Sequence[Voxels], config: ModelConfig, *, stride: int = 2) -> Batch:
    """Windows of B plans, each of the case `cases[b]`, on the device that the cases lie on.

    Occupancies come at the stride of the network's features.
    """
    device = cases[0].codes.device
    noise_seeds = plans.noise_seed.tolist()
    plans = WindowPlan(*(field.to(device, non_blocking=True) for field in plans))
    positions = _positions(plans)
    seen = _look_up(plans, positions, [case.codes for case in cases])
    own_hu = None if all(case.hu is None for case in cases) else _sample(plans, positions, [case.hu for case in cases])
    hu = _scan(plans, seen, noise_seeds, own_hu)
    low, high = config.intensity_range_hu
    out_low, out_high = config.output_range
    image = (hu.clamp_(low, high) - low) * ((out_high - out_low) / (high - low)) + out_low
    occupancy = occupancy_at_stride_2 if stride == 2 else occupancy_at_stride_1
    labels = plans.supervised.shape[1]  # the last row of fields may have room for more
    return image[:, None], occupancy(plans.fields, seen)[:, :labels], plans.supervised


def occupancy_at_stride_2(fields: Tensor, seen: Tensor) -> Tensor:
    """How many of the 8 voxels under each feature voxel carry each label: uint8 (B,C,X/2,Y/2,Z/2) of codes (B,X,Y,Z).

    `fields` int64 (B,R,256): see `WindowPlan`. C is 16 R.
    """
    shifts = torch.arange(0, 64, 4, device=seen.device).view(1, -1, 1, 1, 1)
    halves = []
    for half in range(fields.shape[1]):
        field = _table(fields[:, half], seen)
        field = field[:, 0::2] + field[:, 1::2]
        field = field[:, :, 0::2] + field[:, :, 1::2]
        field = field[..., 0::2] + field[..., 1::2]
        halves.append((field[:, None] >> shifts & 15).to(torch.uint8))
    return torch.cat(halves, dim=1)


def occupancy_at_stride_1(fields: Tensor, seen: Tensor) -> Tensor:
    """8 where a voxel carries a label, 0 elsewhere: uint8 (B,C,X,Y,Z) of codes (B,X,Y,Z)."""
    shifts = torch.arange(0, 64, 4, device=seen.device).view(1, 1, -1, 1)
    by_code = ((fields[:, :, None] >> shifts & 1) * 8).to(torch.uint8).flatten(1, 2)  # (B,C,256)
    found = [table.index_select(1, codes.flatten()) for table, codes in zip(by_code, seen, strict=True)]
    return torch.stack(found).view(len(seen), -1, *seen.shape[1:])


def _positions(plans: WindowPlan) -> Tensor:
    """Where each voxel of a window lies in its case, in voxels whose first one spans 0 to 1: float32 (B,3,X,Y,Z)."""
    shape = [along.shape[-1] for along in (plans.along_x, plans.along_y, plans.along_z)]
    device = plans.center.device
    ticks = [torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2.0 for size in shape]
    positions = _between_nodes(plans.elastic, shape)
    for axis in range(3):
        step, origin = plans.matrix[:, axis], plans.center[:, axis] + 0.5
        in_plane = (step[:, :1] * ticks[0] + origin[:, None])[:, :, None] + (step[:, 1:2] * ticks[1])[:, None]
        along_z = (step[:, 2:] * ticks[2])[:, None, None]
        positions[:, axis].add_(in_plane[..., None]).add_(along_z)
    return positions


def _look_up(plans: WindowPlan, positions: Tensor, cases: Sequence[Tensor]) -> Tensor:
    """Codes int32 (B,X,Y,Z): of the voxel of the case that each position of a window lies in."""
    device = positions.device
    sizes = torch.tensor([case.shape for case in cases], dtype=torch.int32).to(device, non_blocking=True)
    flat = torch.zeros((), dtype=torch.int32, device=device)
    outside = _unscanned(plans, positions.shape[-1])
    for axis in range(3):
        size = sizes[:, axis, None, None, None]
        index = positions[:, axis].floor().int()
        inside = torch.minimum(index.clamp(min=0), size - 1)
        outside = outside | (index != inside)
        flat = flat * size + inside
    codes = [case.view(-1).index_select(0, where.view(-1)) for case, where in zip(cases, flat, strict=True)]
    air = plans.air.to(torch.int32).view(-1, 1, 1, 1)
    return torch.where(outside, air, torch.stack(codes).view(flat.shape).int())


def _unscanned(plans: WindowPlan, planes: int) -> Tensor:
    """The planes that were not scanned: bool (B,1,1,Z)."""
    plane = torch.arange(planes, device=plans.scanned.device)
    return ((plane < plans.scanned[:, :1]) | (plane >= plans.scanned[:, 1:]))[:, None, None]


def _sample(plans: WindowPlan, positions: Tensor, hu_of_scans: Sequence[Tensor | None]) -> Tensor:
    """HU float32 (B,X,Y,Z) of scans, linear between voxels; air beyond them, 0 throughout for a phantom."""
    sampled = torch.zeros((len(positions), *positions.shape[2:]), device=positions.device)
    unscanned = _unscanned(plans, positions.shape[-1])
    for row, hu in enumerate(hu_of_scans):
        if hu is not None:
            where = positions[row] - 0.5
            size = torch.tensor(hu.shape, device=where.device).view(3, 1, 1, 1)
            beyond = ((where < -0.5) | (where > size - 0.5)).any(dim=0) | unscanned[row]
            sampled[row] = _interpolated(hu, where).masked_fill_(beyond, AIR_HU)
    return sampled


def _interpolated(hu: Tensor, where: Tensor) -> Tensor:
    """Values of an int16 volume at positions (3,X,Y,Z) in voxels, edges held; only the box around them is read."""
    low, high = [], []
    for axis, size in enumerate(hu.shape):
        first, last = (float(edge) for edge in where[axis].aminmax())
        low.append(min(max(int(first), 0), size - 1))
        high.append(min(max(int(last) + 2, low[-1] + 1), size))
    box = hu[low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
    scale = torch.tensor([2.0 / max(size - 1, 1) for size in box.shape], device=where.device)
    offset = torch.tensor(low, dtype=torch.float32, device=where.device)
    grid = (where.movedim(0, -1) - offset) * scale - 1.0  # x, y, z; grid_sample wants the last axis first
    return functional.grid_sample(
        box[None, None], grid.flip(-1)[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]


def _scan(plans: WindowPlan, seen: Tensor, noise_seeds: list[int], own_hu: Tensor | None) -> Tensor:
    """HU float32 (B,X,Y,Z): tissue and its texture or a scan's own, noise, the scanner's point spread and slices."""
    batch, x, y, z = seen.shape
    device = seen.device
    hu = torch.empty((batch, x, y, z), device=device)
    nodes = torch.empty((batch, *(n // _TEXTURE_VOXELS + 2 for n in (x, y, z))), device=device)
    for row, noise_seed in enumerate(noise_seeds):
        generator = torch.Generator(device).manual_seed(noise_seed)
        nodes[row].normal_(generator=generator)
        hu[row].normal_(generator=generator)
    rows = (-1, 1, 1, 1)
    hu *= plans.noise_hu.view(rows)
    hu.addcmul_(_table(plans.texture_hu, seen), _slow(nodes, (x, y, z)))
    hu += _table(plans.hu, seen)
    if own_hu is not None:
        hu += own_hu
    hu = torch.bmm(plans.along_x, hu.view(batch, x, y * z)).view(batch, x, y, z)
    hu = torch.matmul(plans.along_y[:, None], hu)
    hu = torch.bmm(hu.view(batch, x * y, z), plans.along_z.transpose(1, 2)).view(batch, x, y, z)
    return hu.mul_(plans.gain.view(rows)).add_(plans.offset_hu.view(rows))


def _table(by_code: Tensor, codes: Tensor) -> Tensor:
    """The values that each window's table (B,256) has for its codes (B,X,Y,Z)."""
    rows = torch.arange(len(by_code), dtype=torch.int32, device=codes.device) * by_code.shape[1]
    return by_code.flatten().index_select(0, (codes + rows.view(-1, 1, 1, 1)).view(-1)).view(codes.shape)


def _slow(nodes: Tensor, shape: Sequence[int]) -> Tensor:
    """About unit noise (B,X,Y,Z) that changes over `_TEXTURE_VOXELS`, of white noise on nodes that far apart."""
    weights = [
        _linear(torch.arange(size, device=nodes.device) / _TEXTURE_VOXELS, count)
        for size, count in zip(shape, nodes.shape[1:], strict=True)
    ]
    return _interpolate(nodes, weights) * _TEXTURE_GAIN


def _between_nodes(nodes: Tensor, shape: Sequence[int]) -> Tensor:
    """Fields (B,3,6,6,6) on grids (B,3,X,Y,Z) whose corners are the outermost nodes."""
    ends = ELASTIC_NODES - 1.0
    weights = [_linear(torch.linspace(0.0, ends, size, device=nodes.device), ELASTIC_NODES) for size in shape]
    return _interpolate(nodes, weights)


def _interpolate(nodes: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Values (...,X,Y,Z) of nodes (...,i,j,k) by a matrix for each axis; small ones first."""
    along_x, along_y, along_z = weights
    *rest, i, j, k = nodes.shape
    x, y, z = len(along_x), len(along_y), len(along_z)
    nodes = torch.matmul(along_x, nodes.reshape(*rest, i, j * k)).view(*rest, x, j, k)
    nodes = torch.matmul(along_y, nodes)
    return torch.matmul(nodes.view(*rest, x * y, k), along_z.T).view(*rest, x, y, z)


def _linear(where: Tensor, nodes: int) -> Tensor:
    """Weights (positions, nodes) of linear interpolation."""
    return (1.0 - (where[:, None] - torch.arange(nodes, device=where.device)).abs()).clamp_(min=0.0)
