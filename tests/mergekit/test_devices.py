"""mergekit's options for accelerators, as far as they can be seen without one.

`FakeTensorMode` gives tensors that have a device, a dtype and a shape, no values, and the rule that an operation
takes tensors of one device. mergekit's engine for several accelerators runs here with two names for the CPU.
"""

import contextlib
import time
import types

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import merge_tensors
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from tiny_merges import assert_same_bits, soup
from torch._subclasses.fake_tensor import FakeTensorMode

from mergekit_bonesoup import bone_soup


@pytest.fixture
def config(checkpoints):
    """A soup of three bfloat16 backbones whose base has a share."""
    a, b, c, base = (checkpoints / f"{name}-bfloat16" for name in ("a", "b", "c", "base"))
    return soup({a: 0.7, b: 0.3, c: 0.0}, {"beta": 0.6, "extrapolation": 0.2}, "bfloat16", base_model=str(base))


@pytest.fixture
def no_values(monkeypatch):
    """Leave out the look at the values of a soup, which tensors without values do not have."""
    monkeypatch.setattr("mergekit_bonesoup.method._is_finite", lambda total, rounded, allow_nan: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "xpu:0"])
def test_the_kernel_stays_on_the_device_of_its_inputs(device, dtype, no_values):
    with FakeTensorMode():
        tensors = [torch.empty(3, 4, device=device, dtype=dtype) for _ in range(3)]
        parameters = {"preference": (0.7, 0.3), "beta": 0.6, "extrapolation": 0.2}
        merged = merge_tensors(tensors, bone_soup, parameters=parameters, base_index=2)
    assert (merged.device, merged.dtype, merged.shape) == (torch.device(device), dtype, (3, 4))


def test_what_a_stray_tensor_would_do():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, 4, device="cuda:0").addcmul_(torch.zeros(3, 4, device="cuda:0"), torch.full((1, 1), 2.0))


def test_a_whole_plan_on_an_accelerator(checkpoints, config, tmp_path, monkeypatch, no_values):
    """What --device cuda:0 --read-to-gpu --low-cpu-memory do: loading, all merges, results, on the accelerator."""
    from mergekit.architecture import get_architecture_info
    from mergekit.graph import Executor
    from mergekit.io import LazyTensorLoader
    from mergekit.io.tasks import SaveTensor
    from mergekit.plan import MergePlanner

    stored = load_file(checkpoints / "a-bfloat16" / "model.safetensors")

    def read(loader, key, device="cpu"):
        return torch.empty(stored[key].shape, dtype=stored[key].dtype, device=device)

    monkeypatch.setattr(LazyTensorLoader, "get_tensor", read)
    options = MergeOptions(device="cuda:0", read_to_gpu=True, low_cpu_memory=True)
    parsed = MergeConfiguration.model_validate(config)
    out_config = parsed.base_model.config()
    planner = MergePlanner(parsed, get_architecture_info(parsed, options), options=options, out_model_config=out_config)
    merges = [task.tensor_task for task in planner.plan_to_disk(str(tmp_path / "out")) if isinstance(task, SaveTensor)]
    with FakeTensorMode():
        executor = Executor(merges, math_device=options.device, storage_device=options.device)
        results = {task.output_weight.name: result for task, result in executor.run(quiet=True)}
    assert {name: (t.dtype, t.shape) for name, t in results.items()} == {
        name: (t.dtype, t.shape) for name, t in stored.items()
    }
    assert {result.device for result in results.values()} == {torch.device("cuda:0")}


def test_mergekit_moves_the_inputs_of_this_method_to_the_accelerator():
    assert bone_soup.spec.uses_accelerator


@pytest.fixture
def two_devices(monkeypatch):
    """Let mergekit's engine for several accelerators see two, both of which are the CPU.

    Results that its progress thread has not taken when the last device is synchronized are lost to it, and the merge
    fails. Here nothing is synchronized, so that a worker has to wait for that thread.
    """
    from mergekit import multigpu_executor

    monkeypatch.setattr(multigpu_executor, "get_torch_accelerator_type", lambda: "cpu")
    monkeypatch.setattr(multigpu_executor, "get_torch_accelerator_count", lambda: 2)
    module = types.SimpleNamespace(synchronize=lambda device: None)
    monkeypatch.setattr(multigpu_executor, "get_torch_accelerator_module", lambda name: module)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


@pytest.mark.parametrize("options", [{}, {"low_cpu_memory": True}, {"low_cpu_memory": True, "async_write": True}])
def test_the_engine_for_several_accelerators(config, merge, two_devices, monkeypatch, options):
    from mergekit.multigpu_executor import MultiGPUExecutor

    plain, worker, seen = merge(config), MultiGPUExecutor._device_worker, {}

    def spy(self, task_list, cached_values, device, quiet):
        seen[device] = sum(isinstance(handle.task(), ExecuteMergeMethodTask) for handle in task_list)
        worker(self, task_list, cached_values, device, quiet)
        while not self.task_completion_queue.empty():  # see two_devices
            time.sleep(0.001)

    monkeypatch.setattr(MultiGPUExecutor, "_device_worker", spy)
    assert_same_bits(merge(config, multi_gpu=True, **options), plain)
    assert set(seen) == {torch.device("cpu:0"), torch.device("cpu:1")}
    assert min(seen.values()) > 0
    assert sum(seen.values()) == len(plain)


def test_gpu_rich_is_nothing_but_the_options_tested_here():
    expected = {"cuda": True, "device": "cuda", "low_cpu_memory": True, "read_to_gpu": True, "multi_gpu": True}
    plain, rich = MergeOptions().model_dump(), MergeOptions(gpu_rich=True).model_dump()
    assert {name: value for name, value in rich.items() if value != plain[name]} == {"gpu_rich": True, **expected}
