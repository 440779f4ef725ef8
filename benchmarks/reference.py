"""The published way to segment a scan, written with MONAI: what Viscera is measured against.

    python benchmarks/reference.py CT.nii.gz --out FOLDER [--bundle BUNDLE] [--checkpoint WEIGHTS] [--overlap 0.5]

One float32 channel per label over the whole volume, the features repeated for every label in front of grouped
convolutions, post-processing of whole volumes label by label, every mask brought back and saved on its own; as in the
released code of Liu et al., ICCV 2023 (arXiv 2301.00785), without its crashes. Kinder than the release in one thing: it
brings back one channel for each mask, where the release brings back all of them each time.

Prints the seconds of each stage as JSON. Needs the extra `training`.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cc3d
import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    MapTransform,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from model_export.importing import import_checkpoint
from service.imaging.geometry import Geometry
from service.inference.bundle import default_bundle_path, open_bundle
from service.inference.grid import whole_grid
from service.inference.manifest import Interpolation, Manifest
from service.inference.resampling import axis_weights, resample
from training.labels import BY_NAME
from training.networks.universal import HEAD_SIZES, UniversalModel
from training.recipe import read_recipe
from training.text import random_text_embedding
from training.warm_start import start_from_bundle

Mask = NDArray[np.bool_]

_HOSTS_KEPT = {"kidney_tumor": 2, "liver_tumor": 1}  # largest components of the joined hosts
_AS_PREDICTED = frozenset(
    ("hepatic_vessel", "pancreas_tumor", "hepatic_vessel_tumor", "lung_tumor", "colon_tumor", "kidney_cyst")
)

_NUDGE = 1e-6  # voxels of the scan: more than rounding, less than any mask notices


class ReferenceNetwork(nn.Module):
    """Logits (1,C,D/s,H/s,W/s) of a window (1,1,D,H,W), the head as the release has it."""

    def __init__(self, model: UniversalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, window: Tensor) -> Tensor:
        """See the class."""
        features, pooled = self.model.backbone_outputs(window)
        w1, w2, w3, b1, b2, b3 = torch.split(self.model.head_params(pooled)[0], list(HEAD_SIZES), dim=1)
        labels = len(w1)
        hidden = features.repeat(1, labels, 1, 1, 1)
        for weight, bias, channels in ((w1, b1, 8), (w2, b2, 8), (w3, b3, 1)):
            kernel = weight.reshape(labels * channels, 8, 1, 1, 1)
            hidden = functional.conv3d(hidden, kernel, bias.reshape(-1), groups=labels)
            hidden = hidden if channels == 1 else functional.relu(hidden)
        return hidden


def torch_model(bundle: Path, checkpoint: Path | None) -> UniversalModel:
    """The network of a bundle: from the checkpoint it came from, or from the bundle itself if its backbone is ours."""
    if checkpoint is not None:
        return import_checkpoint(checkpoint).checkpoint.model.eval()
    model = UniversalModel(read_recipe("default_compact").model, random_text_embedding(0)[0])
    start_from_bundle(model, bundle)
    return model.eval()


def segment(scan: Path, out: Path, model: UniversalModel, manifest: Manifest, overlap: float) -> dict[str, float]:
    """Writes `out/<label>.nii.gz` for every label; the seconds of each stage."""
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with stage("reading"):
        image = nibabel.load(scan)
        case: dict[str, Any] = {"image": MetaTensor(image.get_fdata(dtype=np.float32)[None], affine=image.affine)}
    with stage("preprocessing"):
        steps = Compose(_steps(manifest, case["image"]))
        case = steps(case)
    with stage("inference"), torch.inference_mode():
        stride, background = model.feature_stride, manifest.preprocessing.output_range[0]
        # With an odd edge MONAI's last window would lie between the voxels of features at stride 2.
        beyond = [margin for n in reversed(case["image"].shape[1:]) for margin in (0, -n % stride)]
        logits = sliding_window_inference(
            functional.pad(case["image"][None].as_tensor(), beyond, value=background),
            manifest.sliding_window.roi_size,
            1,
            ReferenceNetwork(model),
            overlap=overlap,
            roi_weight_map=_weights(manifest, stride),
            cval=background,
        )
        assert isinstance(logits, Tensor)
        if stride > 1:
            logits = functional.interpolate(logits, scale_factor=stride, mode="trilinear")
            logits = logits[(..., *(slice(n) for n in case["image"].shape[1:]))]
        probability = torch.sigmoid(logits[0])
    with stage("postprocessing"):
        predicted = {
            label.name: (channel > label.threshold).numpy()
            for label, channel in zip(manifest.labels, probability, strict=True)
        }
        masks = postprocess(predicted)
    with stage("writing"):
        out.mkdir(parents=True, exist_ok=True)
        case["image"].applied_operations = [_half_way_is_up(step) for step in case["image"].applied_operations]
        for name, mask in masks.items():
            case["mask"] = MetaTensor(torch.from_numpy(mask)[None].float(), meta=case["image"].meta)
            case["mask"].applied_operations = list(case["image"].applied_operations)
            back = Invertd("mask", transform=steps, orig_keys="image", nearest_interp=True)(dict(case))["mask"]
            on_scan = (back[0].numpy() > 0.5).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(on_scan, image.affine), out / f"{name}.nii.gz")
    return seconds


def postprocess(predicted: dict[str, Mask]) -> dict[str, Mask]:
    """The release's rules on whole volumes; axes run to the right, to the front and up (RAS)."""
    done: dict[str, Mask] = {}
    for name, mask in predicted.items():
        if name in _HOSTS_KEPT:
            hosts = np.any([predicted[host] for host in BY_NAME[name].hosts], axis=0)
            box = np.ones((5, 5, 5), bool)
            region = ndimage.binary_closing(largest_components(hosts, _HOSTS_KEPT[name]), box)
            done[name] = mask & ndimage.binary_dilation(region, box)
        elif name in _AS_PREDICTED:
            done[name] = mask
        elif name == "portal_and_splenic_vein":
            pancreas = np.flatnonzero(largest_components(predicted["pancreas"], 1).any(axis=(0, 1)))
            done[name] = mask.copy()
            done[name][:, :, : pancreas[0] if len(pancreas) else 0] = False
        elif name in ("lung_right", "lung_left"):
            done[name] = _lung(predicted["lung_right"] | predicted["lung_left"], left=name == "lung_left")
        else:
            done[name] = largest_components(mask, 1)
    return done


def largest_components(mask: Mask, count: int) -> Mask:
    """The largest 26-connected components."""
    components = cc3d.connected_components(mask.astype(np.uint8), connectivity=26)
    sizes = np.bincount(components.ravel())[1:]
    return np.isin(components, np.argsort(-sizes, kind="stable")[:count] + 1)


def _lung(lungs: Mask, *, left: bool) -> Mask:
    """Of the two largest components the one with the smaller mean x is the left lung; without two there is none."""
    components = cc3d.connected_components(lungs.astype(np.uint8), connectivity=26)
    sizes = np.bincount(components.ravel())[1:]
    if len(sizes) < 2:
        return np.zeros_like(lungs)
    pair = np.argsort(-sizes, kind="stable")[:2] + 1
    by_x = sorted(pair, key=lambda number: float(np.nonzero(components == number)[0].mean()))
    return np.asarray(components == by_x[0 if left else 1])


def _weights(manifest: Manifest, stride: int) -> Tensor:
    """The Gaussian on the grid of the features; MONAI wants it on that of the window."""
    windows = manifest.sliding_window
    size = [edge // stride for edge in windows.roi_size]
    weights: Tensor = compute_importance_map(size, mode="gaussian", sigma_scale=windows.sigma_scale)
    for axis in range(3):
        weights = weights.repeat_interleave(stride, dim=axis)
    return weights


def _half_way_is_up(step: dict[str, Any]) -> dict[str, Any]:
    """A step on the way to the model's grid, changed such that on the way back every voxel half way between two takes
    the upper one, as Viscera does. MONAI takes one or the other by rounding; of 3 mm on 2 mm that is every second one.
    """
    if step["class"] != "SpatialResample":
        return step
    scan_affine = step["extra_info"]["src_affine"].clone()
    scan_affine[:3, 3] += _NUDGE * scan_affine[:3, :3].sum(dim=1)
    return {**step, "extra_info": {**step["extra_info"], "src_affine": scan_affine}}


class _Antialiased(MapTransform):
    """The scan on the grid that Spacingd made, resampled as our own bundle asks; MONAI has no such resampling."""

    def __init__(self, scan: MetaTensor, spacing_mm: tuple[float, float, float]) -> None:
        super().__init__("image")
        self.scan, self.spacing_mm = scan, spacing_mm

    def __call__(self, case: dict[str, Any]) -> dict[str, Any]:
        """Replaces the values of the image."""
        hu = self.scan[0].numpy()
        grid = whole_grid(Geometry(hu.shape, np.asarray(self.scan.affine)), self.spacing_mm)
        seen = grid.to_ras.view(hu)
        own = grid.to_ras.geometry(Geometry(hu.shape, np.asarray(self.scan.affine))).spacing_mm
        x, y, z = (
            axis_weights(n_in, np.arange(n_out) * (to / of), Interpolation.LINEAR_ANTIALIAS, step=to / of)
            for n_in, n_out, of, to in zip(seen.shape, grid.whole, own, self.spacing_mm, strict=True)
        )
        case["image"][0] = torch.from_numpy(resample(seen, (x, y, z)))
        return case


def _steps(manifest: Manifest, scan: MetaTensor) -> list[Any]:
    """Onto the model's grid, cropped to the foreground, scaled."""
    wanted = manifest.preprocessing
    low, high = wanted.intensity_range_hu
    out_low, out_high = wanted.output_range
    crop = wanted.foreground_crop
    steps: list[Any] = [
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=wanted.spacing_mm, mode="bilinear"),
    ]
    if wanted.interpolation == Interpolation.LINEAR_ANTIALIAS:
        steps.append(_Antialiased(scan, wanted.spacing_mm))
    if crop is not None:
        foreground = partial(torch.gt, other=crop.above_hu)
        steps.append(CropForegroundd("image", source_key="image", select_fn=foreground, allow_smaller=True))
    steps.append(ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=out_low, b_max=out_high, clip=True))
    return steps


def main() -> None:
    """Segments one scan."""
    parser = argparse.ArgumentParser(description="The published way, in MONAI.")
    parser.add_argument("scan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--overlap", type=float, default=0.5)
    arguments = parser.parse_args()
    bundle = arguments.bundle or default_bundle_path()
    model = torch_model(bundle, arguments.checkpoint)
    seconds = segment(arguments.scan, arguments.out, model, open_bundle(bundle).manifest, arguments.overlap)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
