"""A device beside the processor, in the processor's memory, for machines without a GPU.

What runs there runs on a GPU too, as far as the places of tensors go. As there, tensors of two devices do not meet (but for
numbers without dimensions, copies, and indices from the processor), a generator of the processor draws nothing, and NumPy reads
nothing. Everything is computed by the processor, so that numbers are those of a run without the device. Unlike there, a module
that moves has new parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}
# What a tensor is asked about itself. Answers come from the tensor in the processor's memory, whose shape operations may change.
_FORM: dict[str, Callable[..., Any]] = {
    "size": lambda raw, *axis: raw.size(*axis),
    "stride": lambda raw, *axis: raw.stride(*axis),
    "storage_offset": lambda raw: raw.storage_offset(),
    "numel": lambda raw: raw.numel(),
    "dim": lambda raw: raw.dim(),
    "is_contiguous": lambda raw, form=torch.contiguous_format: raw.is_contiguous(memory_format=form),
    "is_strides_like_format": _ATEN.is_strides_like_format,
    "is_non_overlapping_and_dense": _ATEN.is_non_overlapping_and_dense,
    "layout": lambda raw: raw.layout,
}


class Placed(Tensor):
    """A tensor on the second device: `raw`, in the processor's memory."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: Tensor) -> Placed:
        form: dict[str, Any] = {"dispatch_layout": True}
        if raw.layout == torch.strided:
            form = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, raw.size(), dtype=raw.dtype, device=torch.device(NAME), dispatch_sizes_strides_policy="sizes", **form
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Tensor:
        memo[id(self)] = made = self.detach().clone().requires_grad_(self.requires_grad)
        return made

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy  # type: ignore[assignment]


class SecondDevice(TorchDispatchMode):
    """A block in which the second device is there. To be made before anything is differentiated in the process."""

    def __init__(self) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())

    def __enter__(self) -> Any:
        # `torch.tensor` then copies its numbers there by an operation that is seen here.
        torch._C._set_only_lift_cpu_tensors(True)
        # Gradients are computed by this thread, which alone knows of the block.
        torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.autograd.set_multithreading_enabled(True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        there = any(
            isinstance(leaf, Placed) or (isinstance(leaf, torch.device) and leaf.type == NAME) for leaf in leaves
        )
        return _run(func, args, kwargs) if there else func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on tensors of the second device, or one that makes them."""
    question = func._schema.name.partition("::")[2].removeprefix("sym_")
    if question in _FORM:
        return _FORM[question](args[0].raw, *args[1:])
    leaves = tree_leaves((args, kwargs))
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    _check(func, args, leaves, asked)
    raw_args, raw_kwargs = tree_map(_raw, (args, kwargs))
    found = func(*raw_args, **raw_kwargs)
    changed = [
        args[place] if place < len(args) else kwargs.get(argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if changed and func._schema.returns:
        return changed[0] if len(changed) == 1 else tuple(changed)
    stays = asked is None or asked.type == NAME
    return tree_map(lambda value: Placed(value) if isinstance(value, Tensor) and stays else value, found)


def _check(func: Any, args: Any, leaves: list[Any], asked: torch.device | None) -> None:
    """Refuse what a GPU would."""
    there = [leaf for leaf in leaves if isinstance(leaf, Placed)]
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Placed) and leaf.dim() > 0]
    draws = any(isinstance(leaf, torch.Generator) for leaf in leaves)
    if draws and (there or (asked is not None and asked.type == NAME)):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({func})")
    if func in _COPIES or not there:
        return
    if func in _INDEXING:
        if not isinstance(args[0], Placed):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor (cpu) ({func})"
            )
        here = [tensor for tensor in here if all(tensor is not index for index in args[1])]
    if here:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu ({func})")


def _raw(value: Any) -> Any:
    if isinstance(value, Placed):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) else value


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """What PyTorch asks of the module of a device."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        """There is nothing to be seeded."""
