#!/usr/bin/env python3
"""Facts about a driver that the simulated one must share, through libcuda and NVML alone.

usage: facts.py UUID [fault]

`fault` only makes a context of its own fail with an illegal address, and tells what the driver says.
"""
import ctypes, sys, time

cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
uuid, fault_only = sys.argv[1], len(sys.argv) > 2
WRITE_NOWHERE = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry nowhere() {
    .reg .b64 %at; .reg .b32 %zero;
    mov.u64 %at, 8; mov.u32 %zero, 0;
    st.global.u32 [%at], %zero;
    ret;
}
"""


def name(code):
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(text))
    return f"{code} {text.value.decode() if text.value else '?'}"


def context():
    made = ctypes.c_void_p()
    device = ctypes.c_int()
    assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(made), device) == 0
    assert cuda.cuCtxSetCurrent(made) == 0
    return device


def fault():
    context()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cuModuleLoadData(ctypes.byref(module), WRITE_NOWHERE) == 0
    assert cuda.cuModuleGetFunction(ctypes.byref(function), module, b"nowhere") == 0
    launched = cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    print("a launch of a kernel that writes nowhere:", name(launched))
    print("the wait for it:", name(cuda.cuCtxSynchronize()))
    at = ctypes.c_uint64()
    print("the next allocation in that process:", name(cuda.cuMemAlloc_v2(ctypes.byref(at), 4096)))


class Memory(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [(n, ctypes.c_ulonglong) for n in ("total", "reserved", "free", "used")]


def used(handle):
    memory = Memory(version=ctypes.sizeof(Memory) | 2 << 24)
    assert nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(memory)) == 0
    return memory


if fault_only:
    fault()
    sys.exit()
handle = ctypes.c_void_p()
assert nvml.nvmlInit_v2() == 0
assert nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0
before = used(handle)
device = context()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
after = used(handle)
print("NVML bytes: total", before.total, "reserved", before.reserved, "used", before.used, "free", before.free)
print("CUDA bytes: total", total.value, "free", free.value, "NVML total - reserved:", before.total - before.reserved)
print("an empty context takes", after.used - before.used, "bytes by NVML")
at = ctypes.c_uint64()
assert cuda.cuMemAlloc_v2(ctypes.byref(at), 1) == 0
print("an allocation of 1 byte takes", used(handle).used - after.used, "bytes by NVML")
assert cuda.cuMemFree_v2(at) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(at), 1 << 30) == 0
held, freed = used(handle).used, time.perf_counter()
assert cuda.cuMemFree_v2(at) == 0
while used(handle).used > held - (1 << 29) and time.perf_counter() - freed < 5:
    pass
print("1 GiB freed is seen by NVML after", round((time.perf_counter() - freed) * 1e3, 2), "ms")
print("more memory than there is:", name(cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(1 << 44))))
for number, threshold in enumerate(("shutdown", "slowdown", "memory maximum", "maximum operating")):
    celsius = ctypes.c_uint()
    code = nvml.nvmlDeviceGetTemperatureThreshold(handle, number, ctypes.byref(celsius))
    print(f"temperature threshold {threshold}: code {code}, {celsius.value} °C")
events = ctypes.c_ulonglong()
print("supported events: code", nvml.nvmlDeviceGetSupportedEventTypes(handle, ctypes.byref(events)), hex(events.value))
