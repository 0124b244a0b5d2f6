/* A libnvidia-ml.so.1 for tests: the functions that nvidia-ml-py calls, with the signatures of nvml.h.
   What the driver is like is told by NVML_STUB, words between spaces. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15,
       MISMATCH = 18 };

typedef struct { unsigned gpu; int instance; } device_t; /* instance -1: the whole GPU */
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;

static device_t devices[8][8];
static const unsigned long long GIB = 1ull << 30;

static int is(const char *word) {
    const char *found = getenv("NVML_STUB");
    size_t length = strlen(word);
    for (; found && (found = strstr(found, word)); found += length)
        if ((found[length] == ' ' || !found[length]) && (found == getenv("NVML_STUB") || found[-1] == ' ')) return 1;
    return 0;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (is("log")) { FILE *log = fopen(getenv("NVML_STUB_LOG"), "a"); fprintf(log, "%d\n", getpid()); fclose(log); }
    if (is("hang")) for (;;) pause();
    if (is("stubborn")) { signal(SIGTERM, SIG_IGN); signal(SIGINT, SIG_IGN); for (;;) pause(); }
    if (is("segv")) { *(volatile int *)8 = 1; }
    if (is("abort")) abort();
    if (is("exit")) _exit(3);
    if (is("chatty")) { puts("NVRM: hello"); fflush(stdout); fputs("NVRM: trouble\n", stderr); }
    return is("not-loaded") ? NOT_LOADED : is("mismatch") ? MISMATCH : is("forbidden") ? NO_PERMISSION : OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = is("none") ? 0 : is("eight") ? 8 : 1;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
    if (is("asleep") && index != 5) for (;;) pause();
    if (is("lost") && index == 3) return LOST;
    *device = &devices[index][7];
    **device = (device_t){index, -1};
    return OK;
}

int nvmlDeviceGetUUID(device_t *device, char *uuid, unsigned length) {
    if (device->instance < 0)
        snprintf(uuid, length, "GPU-%08x-aaaa-bbbb-cccc-00000000000%u", 0xabc00000 + device->gpu, device->gpu);
    else
        snprintf(uuid, length, "MIG-%08x-dddd-eeee-ffff-00000000000%d", 0xdef00000 + device->instance, device->instance);
    return OK;
}

int nvmlDeviceGetName(device_t *device, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA H100 80GB HBM3%s", device->instance < 0 ? "" : " MIG 1g.10gb");
    return OK;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
    if (is("shared")) return NOT_SUPPORTED;
    if (is("lost-later")) return LOST;
    memory->total = device->instance < 0 ? 80 * GIB : 10 * GIB;
    memory->free = is("full") ? GIB + GIB / 2 : memory->total - GIB;
    memory->used = memory->total - memory->free;
    return OK;
}

int nvmlDeviceGetTemperature(device_t *device, int sensor, unsigned *degrees) {
    if (sensor || device->instance >= 0 || is("virtual")) return NOT_SUPPORTED;
    *degrees = is("hot") ? 91 : is("warm") ? 85 : 41;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *rates) {
    if (device->instance >= 0) return NOT_SUPPORTED;
    *rates = (utilization_t){is("busy") ? 99 : 7, 1};
    return OK;
}

int nvmlDeviceGetPerformanceState(device_t *device, int *state) {
    (void)device;
    *state = is("virtual") ? 32 : 0;
    return OK;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, unsigned long long *mask) {
    (void)device;
    *mask = is("hot") ? 0x48 : 0x1;
    return OK;
}
#endif

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, unsigned long long *mask) {
    (void)device;
    *mask = 0x4;
    return OK;
}

int nvmlDeviceGetMigMode(device_t *device, unsigned *current, unsigned *pending) {
    if (!is("mig") && !is("mig-empty")) return NOT_SUPPORTED;
    *current = *pending = device->gpu == 0;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned *count) {
    (void)device;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned index, device_t **instance) {
    if (is("mig-empty") || index % 2) return NOT_FOUND;
    *instance = &devices[device->gpu][index];
    **instance = (device_t){device->gpu, (int)index};
    return OK;
}

int nvmlDeviceGetGpuInstanceId(device_t *device, unsigned *id) {
    *id = 7 + device->instance;
    return OK;
}

int nvmlDeviceGetComputeInstanceId(device_t *device, unsigned *id) {
    (void)device;
    *id = 0;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned *count, process_t *processes) {
    (void)device;
    if (!is("full") || is("container")) { *count = 0; return OK; }
    if (!processes) { *count = 2; return INSUFFICIENT_SIZE; }
    *count = 2;
    processes[0] = (process_t){atoi(getenv("NVML_STUB_PID")), 76 * GIB, 0, 0};
    processes[1] = (process_t){4194305, ~0ull, 0, 0}; /* above the largest pid there can be; memory not available */
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, unsigned *count, process_t *processes) {
    (void)device, (void)processes;
    *count = 0;
    return is("full") ? NO_PERMISSION : OK;
}
