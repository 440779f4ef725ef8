"""Two processes that share a batch compute what one does with all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import tiny_recipe, write_box_store
from training.checkpoint import read_content
from training.parallel import ALONE, Part, SharedBatchNorm3d, share_batch_norms
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]


def write_recipe(recipe: Recipe, path: Path) -> None:
    """As TOML, whose inline tables and values JSON nearly is."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    model = values.pop("model")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join([*lines, "[model]", *(f"{key} = {json.dumps(value)}" for key, value in model.items())]))


def trained(folder: Path, recipe: Recipe, *launcher: str) -> dict[str, Any]:
    write_box_store(folder / "store", recipe)
    write_recipe(recipe, folder / "two.toml")
    ended = subprocess.run(
        [sys.executable, *launcher, "training.cli", "train", "--recipe", folder / "two.toml", "--run", folder],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1" if "torch.distributed.run" in launcher else "2"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return read_content(folder / "last.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Losses and batch norms over the whole batch: after a step, gradients and statistics agree to 1e-5.

    Weights are not compared: where a gradient is no more than rounding, the first step of AdamW is its sign alone.
    """
    recipe = tiny_recipe(
        steps=1, batch_size=2, warmup_steps=0, learning_rate=1e-3, ema_decay=0.0, deep_supervision=0.5,
        half_cost_voxels=100.0, mixed_precision=False, validation_samples=0,
    )  # fmt: skip
    one = trained(tmp_path / "one", recipe, "-m")
    two = trained(
        tmp_path / "two", recipe, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--"
    )
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        if "running" in name:
            torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-5, atol=1e-5)
    moments, same = (run["resume"]["optimizer"]["state"] for run in (one, two))
    assert moments.keys() == same.keys()
    for key in moments:
        torch.testing.assert_close(same[key]["exp_avg"], moments[key]["exp_avg"], rtol=1e-5, atol=1e-5)


def test_batches_are_dealt_out() -> None:
    assert ALONE.share_of(3) == 3
    assert Part(1, 2).share_of(6) == 3
    with pytest.raises(ValueError, match="A batch of 3 windows cannot be dealt out to 2 processes"):
        Part(0, 2).share_of(3)


def test_a_shared_batch_norm_alone_is_a_batch_norm() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.BatchNorm3d(4))
    shared = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.BatchNorm3d(4))
    shared.load_state_dict(plain.state_dict())
    share_batch_norms(shared)
    assert isinstance(shared[1], SharedBatchNorm3d)
    window = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shared(window), plain(window))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    torch.testing.assert_close(shared.eval()(window), plain.eval()(window))
