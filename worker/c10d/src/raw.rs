//! The C functions of `shim/`, as they are. Nothing here is safe; nothing here decides.

use std::ffi::{c_char, c_void};

#[repr(C)]
pub(crate) struct Slice {
    pub(crate) data: *const u8,
    pub(crate) len: usize,
}

/// `std::vector<uint8_t>` of the shim.
#[repr(C)]
pub(crate) struct Bytes {
    _opaque: [u8; 0],
}

/// `c10::Event` of the shim.
#[repr(C)]
pub(crate) struct Event {
    _opaque: [u8; 0],
}

/// `Buckets` of the shim.
#[repr(C)]
pub(crate) struct Buckets {
    _opaque: [u8; 0],
}

/// `at::cuda::CUDAGraph`.
#[repr(C)]
pub(crate) struct Graph {
    _opaque: [u8; 0],
}

/// `GroupRef` of the shim.
#[repr(C)]
pub(crate) struct Group {
    _opaque: [u8; 0],
}

pub(crate) const STORE_SET: i32 = 0;
pub(crate) const STORE_GET: i32 = 1;
pub(crate) const STORE_ADD: i32 = 2;
pub(crate) const STORE_COMPARE_SET: i32 = 3;
pub(crate) const STORE_DELETE: i32 = 4;
pub(crate) const STORE_CHECK: i32 = 5;
pub(crate) const STORE_WAIT: i32 = 6;
pub(crate) const STORE_MULTI_GET: i32 = 7;
pub(crate) const STORE_FAILED: i64 = i64::MIN;

pub(crate) type StoreCall =
    unsafe extern "C" fn(*mut c_void, i32, *const Slice, usize, i64, *mut Bytes) -> i64;
pub(crate) type StoreDrop = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    pub(crate) fn thanos_graph_begin(out: *mut *mut Graph) -> *mut c_char;
    pub(crate) fn thanos_graph_end(graph: *mut Graph) -> *mut c_char;
    pub(crate) fn thanos_graph_replay(graph: *mut Graph) -> *mut c_char;
    pub(crate) fn thanos_graph_free(graph: *mut Graph);
    pub(crate) fn thanos_be_deterministic();
    pub(crate) fn thanos_bytes_assign(bytes: *mut Bytes, data: *const u8, len: usize);
    pub(crate) fn thanos_gloo_create(
        store: *mut c_void,
        call: StoreCall,
        drop: StoreDrop,
        rank: i32,
        size: i32,
        host: *const c_char,
        interface: *const c_char,
        timeout_ms: i64,
        out: *mut *mut Group,
    ) -> *mut c_char;
    pub(crate) fn thanos_nccl_create(
        store: *mut c_void,
        call: StoreCall,
        drop: StoreDrop,
        rank: i32,
        size: i32,
        gpu: i32,
        timeout_ms: i64,
        out: *mut *mut Group,
    ) -> *mut c_char;
    pub(crate) fn thanos_group_connect(group: *mut Group) -> *mut c_char;
    pub(crate) fn thanos_group_share(group: *mut Group) -> *mut Group;
    pub(crate) fn thanos_group_drop(group: *mut Group);
    pub(crate) fn thanos_group_abort(group: *mut Group) -> *mut c_char;
    pub(crate) fn thanos_group_synchronize(group: *mut Group) -> *mut c_char;
    pub(crate) fn thanos_group_free(group: *mut Group);
    pub(crate) fn thanos_all_reduce(group: *mut Group, tensor: *mut c_void) -> *mut c_char;
    pub(crate) fn thanos_all_gather(
        group: *mut Group,
        output: *mut c_void,
        input: *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_reduce_scatter(
        group: *mut Group,
        output: *mut c_void,
        input: *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_broadcast(
        group: *mut Group,
        tensor: *mut c_void,
        root: i32,
    ) -> *mut c_char;
    pub(crate) fn thanos_barrier(group: *mut Group) -> *mut c_char;
    pub(crate) fn thanos_all_reduce_differentiable(
        group: *mut Group,
        input: *mut c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_buckets_create(
        group: *mut Group,
        count: usize,
        parameters: *const *mut c_void,
        row: *mut c_void,
        buckets: usize,
        ends: *const usize,
        out: *mut *mut Buckets,
    ) -> *mut c_char;
    pub(crate) fn thanos_buckets_begin(buckets: *mut Buckets) -> *mut c_char;
    pub(crate) fn thanos_buckets_finish(buckets: *mut Buckets) -> *mut c_char;
    pub(crate) fn thanos_buckets_free(buckets: *mut Buckets);
    pub(crate) fn thanos_fused_adamw(
        count: usize,
        parameters: *const *mut c_void,
        gradients: *const *mut c_void,
        means: *const *mut c_void,
        squares: *const *mut c_void,
        steps: *const *mut c_void,
        learning_rate: *mut c_void,
        rates: *const f64,
    ) -> *mut c_char;
    pub(crate) fn thanos_collectives(entered: *mut u64, left: *mut u64, waited_us: *mut u64);
    pub(crate) fn thanos_keep_freed_memory();
    pub(crate) fn thanos_set_tf32(allowed: bool) -> *mut c_char;
    pub(crate) fn thanos_use_interface(name: *const c_char);
    pub(crate) fn thanos_use_gpu(gpu: i32) -> *mut c_char;
    pub(crate) fn thanos_gpu_memory(free_bytes: *mut u64, total_bytes: *mut u64) -> *mut c_char;
    pub(crate) fn thanos_event_record(out: *mut *mut Event) -> *mut c_char;
    pub(crate) fn thanos_event_wait(event: *mut Event) -> *mut c_char;
    pub(crate) fn thanos_event_elapsed(
        from: *mut Event,
        to: *mut Event,
        milliseconds: *mut f64,
    ) -> *mut c_char;
    pub(crate) fn thanos_event_free(event: *mut Event);
    pub(crate) fn _exit(code: i32) -> !;
    pub(crate) fn free(pointer: *mut c_void);
}
