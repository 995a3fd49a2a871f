// The C side of thanos-c10d: libtorch's process groups as a dozen C functions.
// It knows tensors and groups, nothing of training. Every function catches every C++ exception and
// returns its kind and text (malloc'ed, freed by the caller), or null. See ../src/raw.rs for the
// other side, line by line.
#include <malloc.h>
#include <sched.h>

#include <ATen/ops/_fused_adamw.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "group.h"
#include "guard.h"

using namespace thanos;

namespace {

using Bytes = std::vector<uint8_t>;

struct Slice {
  const uint8_t* data;
  size_t len;
};

enum StoreOperation : int32_t { kSet, kGet, kAdd, kCompareSet, kDelete, kCheck, kWait, kMultiGet };

constexpr int64_t kStoreFailed = INT64_MIN;

// Gloo asks a store for all ranks' addresses at once only where this is set; else twice for each,
// which are 2 W^2 calls for W ranks. With the second one a rank's address no longer lists a number
// for each peer: 0.2 KB instead of 8 W bytes more, and every rank gets that of every other. Set
// before any thread runs, as getenv and setenv do not go together; what the user has set is left
// alone.
const bool gloo_options = [] {
  setenv("GLOO_ENABLE_STORE_V2_API", "1", /*overwrite=*/0);
  setenv("GLOO_ENABLE_RANK_AS_SEQUENCE_NUMBER", "1", /*overwrite=*/0);
  return true;
}();

// By default c10d's watchdog aborts the process when a collective fails or times out, and waits for
// a dump of its flight recorder: a lost peer would take the state in this rank's memory along. A
// lost peer is this program's to handle (`thanos_group_abort`), so these are set whatever the
// environment says.
const bool nccl_options = [] {
  for (const char* name :
       {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_DESYNC_DEBUG",
        "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_PROPAGATE_ERROR",
        "TORCH_NCCL_RETHROW_CUDA_ERRORS", "TORCH_FR_BUFFER_SIZE",
        "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"}) {
    setenv(name, "0", /*overwrite=*/1);
  }
  return true;
}();

// Answers one store operation. Values, or the text of an error, go to `out` by thanos_bytes_assign.
using StoreCall = int64_t (*)(void* store, int32_t operation, const Slice* slices, size_t count,
                              int64_t number, Bytes* out);
using StoreDrop = void (*)(void* store);

// A c10d store whose every operation is a call back into Rust.
class CallbackStore : public c10d::Store {
 public:
  CallbackStore(std::shared_ptr<void> store, StoreCall call, std::chrono::milliseconds timeout)
      : c10d::Store(timeout), store_(std::move(store)), call_(call) {}

  c10::intrusive_ptr<c10d::Store> clone() override {
    return c10::make_intrusive<CallbackStore>(store_, call_, timeout_);
  }

  using c10d::Store::set;
  void set(const std::string& key, const Bytes& value) override {
    Bytes out;
    request(kSet, {slice(key), {value.data(), value.size()}}, 0, out);
  }

  Bytes get(const std::string& key) override {
    Bytes out;
    request(kGet, {slice(key)}, timeout_.count(), out);
    return out;
  }

  int64_t add(const std::string& key, int64_t value) override {
    Bytes out;
    return request(kAdd, {slice(key)}, value, out);
  }

  using c10d::Store::compareSet;
  Bytes compareSet(const std::string& key, const Bytes& current, const Bytes& desired) override {
    Bytes out;
    request(kCompareSet,
            {slice(key), {current.data(), current.size()}, {desired.data(), desired.size()}}, 0,
            out);
    return out;
  }

  bool deleteKey(const std::string& key) override {
    Bytes out;
    return request(kDelete, {slice(key)}, 0, out) != 0;
  }

  bool check(const std::vector<std::string>& keys) override {
    Bytes out;
    return request(kCheck, slices(keys), 0, out) != 0;
  }

  // Gloo calls `multiGet` alone of these.
  bool hasExtendedApi() const override { return true; }

  std::vector<Bytes> multiGet(const std::vector<std::string>& keys) override {
    Bytes out;
    request(kMultiGet, slices(keys), timeout_.count(), out);
    std::vector<Bytes> values;
    for (size_t at = 0; at < out.size();) {
      uint64_t length = 0;
      if (out.size() - at < sizeof(length))
        throw std::runtime_error("store: a value without a length");
      memcpy(&length, out.data() + at, sizeof(length));
      at += sizeof(length);
      if (out.size() - at < length) throw std::runtime_error("store: a value that is cut off");
      values.emplace_back(out.begin() + at, out.begin() + at + length);
      at += length;
    }
    if (values.size() != keys.size()) throw std::runtime_error("store: not a value for each key");
    return values;
  }

  void multiSet(const std::vector<std::string>& keys, const std::vector<Bytes>& values) override {
    for (size_t i = 0; i < keys.size(); i++) set(keys[i], values[i]);
  }

  void append(const std::string&, const Bytes&) override {
    throw std::runtime_error("the coordinator's store does not append");
  }

  int64_t getNumKeys() override {
    throw std::runtime_error("the coordinator's store does not count its keys");
  }

  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }

  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override {
    Bytes out;
    request(kWait, slices(keys), timeout.count(), out);
  }

 private:
  static Slice slice(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }

  static std::vector<Slice> slices(const std::vector<std::string>& keys) {
    std::vector<Slice> all;
    for (const auto& key : keys) all.push_back(slice(key));
    return all;
  }

  int64_t request(StoreOperation operation, const std::vector<Slice>& all, int64_t number,
                  Bytes& out) {
    const auto answer = call_(store_.get(), operation, all.data(), all.size(), number, &out);
    if (answer == kStoreFailed)
      C10_THROW_ERROR(DistStoreError, "store: " + std::string(out.begin(), out.end()));
    return answer;
  }

  std::shared_ptr<void> store_;
  StoreCall call_;
};

// Gloo's own thread polls its sockets, and polls again at once when another thread holds a
// connection's lock. Where ranks share cores, it woke up on the core of just that thread, preempted
// it, and both waited for the next tick of the scheduler: 4 ms an all-reduce with four ranks on two
// cores, against 1 ms when it may not preempt. SCHED_BATCH is that, needs no privilege, and is
// inherited from the thread that makes the device.
std::shared_ptr<::gloo::transport::Device> make_device(const std::string& host,
                                                       const std::string& interface) {
  std::shared_ptr<::gloo::transport::Device> device;
  std::exception_ptr failure;
  std::thread([&] {
    const sched_param none{};
    sched_setscheduler(0, SCHED_BATCH, &none);
    try {
      device = interface.empty() ? c10d::ProcessGroupGloo::createDeviceForHostname(host)
                                 : c10d::ProcessGroupGloo::createDeviceForInterface(interface);
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  return device;
}

// y = sum of x over the ranks. Every rank's loss depends on y, so dL/dx is the sum of dL/dy over
// the ranks.
class AllReduceSum : public torch::autograd::Function<AllReduceSum> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            GroupRef group) {
    context->saved_data["group"] = c10::IValue::make_capsule(group);
    auto output = input.detach().contiguous().clone();
    all_reduce_sum(*group, output);
    return output;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    auto group =
        c10::static_intrusive_pointer_cast<Group>(context->saved_data["group"].toCapsule());
    auto gradient = gradients[0].contiguous().clone();
    within_backward([&] { all_reduce_sum(*group, gradient); });
    return {gradient, at::Tensor()};
  }
};

}  // namespace

extern "C" {

void thanos_bytes_assign(Bytes* bytes, const uint8_t* data, size_t len) {
  bytes->assign(data, data + len);
}

// Owns `store` from the call on, also when it fails. An empty `interface` means: bind to `host`.
char* thanos_gloo_create(void* store, StoreCall call, StoreDrop drop, int32_t rank, int32_t size,
                         const char* host, const char* interface, int64_t timeout_ms,
                         GroupRef** out) {
  std::shared_ptr<void> owned(store, drop);
  return guard([&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(make_device(host, interface));
    // One thread keeps collectives in the order in which they were asked for.
    options->threads = 1;
    auto rendezvous = c10::make_intrusive<CallbackStore>(owned, call, timeout);
    *out = new GroupRef(c10::make_intrusive<Group>(
        c10::make_intrusive<c10d::ProcessGroupGloo>(rendezvous, rank, size, options),
        std::nullopt));
  });
}

// Without a communicator yet: see thanos_group_connect.
char* thanos_nccl_create(void* store, StoreCall call, StoreDrop drop, int32_t rank, int32_t size,
                         int32_t gpu, int64_t timeout_ms, GroupRef** out) {
  std::shared_ptr<void> owned(store, drop);
  return guard([&] {
#ifdef USE_C10D_NCCL
    const std::chrono::milliseconds timeout(timeout_ms);
    const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    auto rendezvous = c10::make_intrusive<CallbackStore>(owned, call, timeout);
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(rendezvous, rank, size, options);
    // Else it guesses a device by its rank in collectives without tensors.
    backend->setBoundDeviceId(device);
    *out = new GroupRef(c10::make_intrusive<Group>(backend, device));
#else
    throw std::runtime_error("this build has no NCCL: build it with the cargo feature `cuda`");
#endif
  });
}

char* thanos_group_connect(GroupRef* group) {
  return guard([&] { (*group)->connect(); });
}

// A second reference, for the thread that may have to abort the group; freed as the first one is.
GroupRef* thanos_group_share(GroupRef* group) { return new GroupRef(*group); }

void thanos_group_drop(GroupRef* group) { delete group; }

char* thanos_group_abort(GroupRef* group) {
  return guard([&] { (*group)->abort(); });
}

void thanos_group_free(GroupRef* group) {
  // A group that died with its peers may throw.
  free(guard([&] { (*group)->close(); }));
  free(guard([&] { delete group; }));
}

// Waits until what was launched so far is done, and fails if it is not to be used.
char* thanos_group_synchronize(GroupRef* group) {
  return guard([&] {
    (*group)->wait();
    (*group)->check();
  });
}

char* thanos_all_reduce(GroupRef* group, at::Tensor* tensor) {
  return guard([&] {
    at::NoGradGuard no_grad;
    all_reduce_sum(**group, *tensor);
  });
}

char* thanos_all_gather(GroupRef* group, at::Tensor* output, at::Tensor* input) {
  return guard([&] {
    auto gathered = staged(**group, *output);
    auto own = staged(**group, *input);
    finish(**group, (*group)->get()._allgather_base(gathered, own));
    unstage(gathered, *output);
  });
}

char* thanos_reduce_scatter(GroupRef* group, at::Tensor* output, at::Tensor* input) {
  return guard([&] {
    auto part = staged(**group, *output);
    auto all = staged(**group, *input);
    auto& backend = (*group)->get();
    if ((*group)->is_nccl()) {
      finish(**group, backend._reduce_scatter_base(part, all));
    } else {
      // As ProcessGroupGloo does it, but that its work object waits for as long as it takes.
      std::vector<at::Tensor> sum{all.clone()};
      finish(**group, backend.allreduce(sum));
      part.copy_(sum[0].chunk(backend.getSize())[backend.getRank()]);
    }
    unstage(part, *output);
  });
}

char* thanos_broadcast(GroupRef* group, at::Tensor* tensor, int32_t root) {
  return guard([&] {
    const auto sent = staged(**group, *tensor);
    std::vector<at::Tensor> tensors{sent};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    finish(**group, (*group)->get().broadcast(tensors, options));
    unstage(sent, *tensor);
  });
}

// NCCL's blocks until the device is there, too.
char* thanos_barrier(GroupRef* group) {
  return guard([&] {
    finish(**group, (*group)->get().barrier());
    (*group)->check();
  });
}

char* thanos_all_reduce_differentiable(GroupRef* group, at::Tensor* input, at::Tensor** out) {
  return guard([&] { *out = new at::Tensor(AllReduceSum::apply(*input, *group)); });
}

// One AdamW update of `count` parameters by libtorch's fused kernel, which tch does not bind.
// `steps` holds a float scalar a parameter: the number of this update, from 1. The learning rate is
// `learning_rate`, a float scalar on the device, or where that is null `rates[0]`.
char* thanos_fused_adamw(size_t count, at::Tensor* const* parameters, at::Tensor* const* gradients,
                         at::Tensor* const* means, at::Tensor* const* squares,
                         at::Tensor* const* steps, at::Tensor* learning_rate, const double* rates) {
  return guard([&] {
    const auto list = [count](at::Tensor* const* tensors) {
      std::vector<at::Tensor> all;
      for (size_t i = 0; i < count; i++) all.push_back(*tensors[i]);
      return all;
    };
    at::NoGradGuard no_grad;
    const auto update = [&](const auto& lr) {
      at::_fused_adamw_(
          list(parameters), list(gradients), list(means), list(squares), {}, list(steps), lr,
          /*beta1=*/rates[1], /*beta2=*/rates[2], /*weight_decay=*/rates[3], /*eps=*/rates[4],
          /*amsgrad=*/false, /*maximize=*/false);
    };
    if (learning_rate) update(*learning_rate);
    else update(rates[0]);
  });
}

void thanos_collectives(uint64_t* entered, uint64_t* left, uint64_t* waited_us) {
  // In this order: a collective that ends in between is not taken for one that lasts.
  *left = collectives_left;
  *entered = collectives_entered;
  *waited_us = collectives_waited_us;
}

// glibc gives large blocks back to the kernel when they are freed, and a training step frees and
// takes the same hundreds of megabytes again: every page is then cleared again. Keep them.
void thanos_keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
}

}  // extern "C"
