"""The GPU: CuPy's arrays, kernels compiled by NVRTC as they are first used, cuBLAS, one stream, CUDA graphs."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_choice
from ddpm_ref_cupy import cublas
from ddpm_ref_cupy.arena import Arena, Recording
from ddpm_ref_cupy.device import PRECISIONS, Device, Launch
from ddpm_ref_cupy.source import OPTIONS, source

OLDEST = (7, 5)  # compute capability that CUDA 13 still knows
TENSOR_CORES = (8, 0)  # from which cards multiply TF32 and bfloat16
SMALL_SHARED = 48 << 10  # bytes of shared memory that need no leave
SCALARS = (int, float, bool)


def load_cupy() -> Any:
    """CuPy, where there is a GPU it can use; ImportError with one sentence that says what is missing."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            'the cupy backend needs CuPy: pip install "ddpm-ref[cuda13]" (or cuda12, as the driver allows)'
        ) from error
    if int(cupy.__version__.split(".")[0]) < 14:
        raise ImportError(f'the cupy backend needs CuPy 14, here is {cupy.__version__}: pip install "ddpm-ref[cuda13]"')
    _check_card(cupy)
    return cupy


def _check_card(cupy: Any) -> None:
    """ImportError unless there is a driver, new enough, and a card that is not too old."""
    runtime = cupy.cuda.runtime
    built_for = runtime.runtimeGetVersion() // 1000
    try:
        driver = runtime.driverGetVersion()
        count = runtime.getDeviceCount() if driver else 0
    except runtime.CUDARuntimeError as error:
        if "InsufficientDriver" not in str(error):
            raise ImportError(f"the cupy backend found no usable GPU: {error}") from error
    if not driver:
        raise ImportError("the cupy backend found no NVIDIA GPU: this machine has no NVIDIA driver")
    if driver // 1000 < built_for:
        raise ImportError(
            f"the NVIDIA driver here is made for CUDA {driver // 1000}.{driver % 1000 // 10}, CuPy for {built_for}: "
            f'update the driver, or pip install "ddpm-ref[cuda{driver // 1000}]" and uninstall the other CuPy'
        )
    if not count:
        raise ImportError("the cupy backend found no NVIDIA GPU: the driver lists none (is CUDA_VISIBLE_DEVICES set?)")
    card = runtime.getDeviceProperties(runtime.getDevice())
    capability = card["major"], card["minor"]
    if capability < OLDEST:
        raise ImportError(
            f"the cupy backend needs a card of compute capability {OLDEST[0]}.{OLDEST[1]} or newer, "
            f"{card['name'].decode()} has {capability[0]}.{capability[1]}"
        )


@cache
def _stream(cupy: Any) -> Any:
    """One stream for all work of this process: what is written by one backend may be read by another."""
    return cupy.cuda.Stream(non_blocking=True)


def _own_options(file: str, capability: tuple[int, int]) -> tuple[str, ...]:
    """wgmma wants the processor named with its "a"; NVRTC keeps to that whatever CuPy says beside it."""
    return ("-arch=sm_90a",) if file == "conv_hopper" and capability == (9, 0) else ()


class CudaDevice(Device):
    """One card. precision: "fp32", "tf32" or "bf16", what products of float32 arrays round their operands to.

    graphs: False to launch one by one whatever would be a graph.
    """

    def __init__(self, precision: str = "fp32", *, graphs: bool = True) -> None:
        check_choice("precision", precision, PRECISIONS)
        self.cupy = load_cupy()
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.runtime.getDevice())
        self.name: str = properties["name"].decode()
        self.capability = properties["major"], properties["minor"]
        self.processors: int = properties["multiProcessorCount"]
        runtime = self.cupy.cuda.runtime
        shared = runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin
        self.shared_limit: int = runtime.deviceGetAttribute(shared, runtime.getDevice())
        self.total: int = properties["totalGlobalMem"]
        if precision != "fp32" and self.capability < TENSOR_CORES:
            raise ValueError(f"precision: {self.name} has no {precision}, only fp32")
        self.precision, self.graphs = precision, graphs
        self.stream = _stream(self.cupy)
        self.stream.use()
        self._capturing: list[tuple[Array, np.ndarray]] | None = None  # what to write once a graph is captured
        self._kernels: dict[tuple[str, Any], Any] = {}
        self._modules: dict[tuple[str, Any], Any] = {}

    @property
    def version(self) -> str:
        """What runs the kernels."""
        runtime = self.cupy.cuda.runtime.runtimeGetVersion()
        return f"CuPy {self.cupy.__version__}, CUDA {runtime // 1000}.{runtime % 1000 // 10}"

    # --- arrays

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.cupy.zeros(shape, dtype)

    def holds(self, x: Array) -> bool:
        return isinstance(x, self.cupy.ndarray)

    def contiguous(self, x: Array) -> Array:
        return x if x.flags.c_contiguous and x.data.ptr % 16 == 0 else x.copy(order="C")

    # Copies go to our stream by name and are waited for: CuPy's own may take the default stream, which ours does not
    # wait for, nor it for ours.

    def to_device(self, x: Array) -> Array:
        if isinstance(x, self.cupy.ndarray):
            return x
        host = np.require(x, requirements="C")
        y = self.cupy.empty(host.shape, host.dtype)
        if host.size:
            y.data.copy_from_host_async(host.ctypes.data, host.nbytes, self.stream)
            self.stream.synchronize()
        return y

    def to_host(self, x: Array) -> np.ndarray:
        if not isinstance(x, self.cupy.ndarray):
            return np.asarray(x)
        x = self.contiguous(x)
        host = np.empty(x.shape, x.dtype)
        if host.size:
            x.data.copy_to_host_async(host.ctypes.data, host.nbytes, self.stream)
            self.stream.synchronize()
        return host

    def address(self, x: Array) -> int:
        return int(x.data.ptr)

    def write(self, x: Array, values: np.ndarray) -> None:
        if self._capturing is not None:
            self._capturing.append((x, values))
        else:
            x.data.copy_from_host_async(values.ctypes.data, values.nbytes, self.stream)
            self.stream.synchronize()

    def synchronize(self) -> None:
        """Wait for everything launched so far."""
        self.stream.synchronize()

    # --- kernels

    def launch(self, launch: Launch, *args: Any) -> None:
        """Run a kernel, compiled at its first launch and kept in CuPy's cache on disk."""
        for arg in args:
            if type(arg) in SCALARS:
                raise TypeError(f"{launch.kernel}: wanted NumPy scalars of the parameters' types, got {arg!r}")
        self._kernel(launch)(launch.grid, launch.block, args, shared_mem=launch.shared)

    def _kernel(self, launch: Launch) -> Any:
        key = launch.kernel, np.dtype(launch.real)
        kernel = self._kernels.get(key)
        if kernel is None:
            file, _, name = launch.kernel.partition(".")
            kernel = self._kernels[key] = self._module(file, key[1]).get_function(name)
        if launch.shared > SMALL_SHARED and kernel.max_dynamic_shared_size_bytes < launch.shared:
            kernel.max_dynamic_shared_size_bytes = launch.shared
        return kernel

    def compile(self, file: str, real: np.dtype) -> None:
        """Compile a kernel file, or take it from the cache."""
        self._module(file, real).compile()

    def _module(self, file: str, real: np.dtype) -> Any:
        """The kernels of `kernels/file.cu` for one type."""
        module = self._modules.get((file, real))
        if module is None:
            options = *OPTIONS[real.name], *_own_options(file, self.capability)
            module = self.cupy.RawModule(code=source(file), options=options)
            self._modules[file, real] = module
        return module

    # --- matrix products

    @cached_property
    def _cublas(self) -> cublas.Cublas:
        self._workspace = self.cupy.cuda.Memory(cublas.WORKSPACE)
        return cublas.Cublas(cublas.load_library(), self.stream.ptr, self._workspace.ptr)

    def matmul(
        self, a: Array, b: Array, out: Array, *, trans_a: bool = False, trans_b: bool = False, add: bool = False
    ) -> Array:
        count, *_ = cublas.checked(a.shape, b.shape, out.shape, trans_a, trans_b)
        kind = cublas.KINDS[a.dtype]
        operands = [
            cublas.Operand(x.data.ptr, *x.shape[-2:], x.shape[-1] * x.shape[-2], cublas.KINDS[x.dtype])
            for x in (a, b, out)
        ]
        compute = cublas.compute_type(kind, self.precision)
        self._cublas.product(*operands, count, trans_a, trans_b, add, compute)
        return out

    # --- memory and graphs

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for arrays here, those that CuPy's pool holds for reuse included, and of the card."""
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return free + self.cupy.get_default_memory_pool().free_bytes(), total

    def forget(self) -> None:
        gc.collect()
        self.stream.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Note what is allocated within, and when it is freed."""
        recording, pool, held = Recording(), self.cupy.get_default_memory_pool(), {}

        def take(size: int, _device: int) -> int:
            pointer = pool.malloc(size)
            held[pointer.ptr] = pointer
            recording.took(pointer.ptr, size)
            return int(pointer.ptr)

        def give(address: int, _device: int) -> None:
            recording.gave(address)
            held.pop(address, None)

        allocator = self.cupy.cuda.PythonFunctionAllocator(take, give)
        with self.cupy.cuda.using_allocator(allocator.malloc):
            yield recording

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        return Graph(self, work) if self.graphs else work


class Graph:
    """`Device.graph`: run once to compile what must be, once watched to plan memory, then captured and launched.

    The graph's memory is one block that nothing else uses. A captured step that allocates otherwise than the watched
    one is an error.
    """

    def __init__(self, run: CudaDevice, work: Callable[[], None]) -> None:
        self._run, self._work = run, work
        self._warm, self._recording, self._graph, self._block = False, None, None, None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._run.stream)
        elif not self._warm:
            self._work()
            self._warm = True
        elif self._recording is None:
            with self._run.recording() as recording:
                self._work()
            self._recording = recording
        else:
            self._graph = self._captured()
            self._graph.launch(self._run.stream)

    def _captured(self) -> Any:
        run, cupy = self._run, self._run.cupy
        run.forget()  # so that the block may lie where the watched step's arrays lay
        arena = Arena(self._recording)
        self._block = block = cupy.cuda.alloc(max(arena.size, 1))
        with cupy.cuda.using_allocator(lambda size: block + arena.place(size)):
            run._capturing = writes = []
            run.stream.begin_capture()
            try:
                self._work()
            except BaseException:
                with suppress(Exception):
                    run.stream.end_capture()
                raise
            finally:
                run._capturing = None
            graph = run.stream.end_capture()
        arena.check_used_up()
        for x, values in writes:
            run.write(x, values)
        graph.upload(run.stream)
        return graph
