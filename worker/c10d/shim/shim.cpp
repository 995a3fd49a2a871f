// The C side of thanos-c10d: libtorch's process groups as a dozen C functions.
// It knows tensors and groups, nothing of training. Every function catches every C++ exception and
// returns its kind and text (malloc'ed, freed by the caller), or null. See ../src/raw.rs for the
// other side, line by line.
#include <malloc.h>
#include <sched.h>

#include <ATen/ops/_fused_adamw.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "guard.h"

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

// Collectives that this process has entered and left, and how long it has waited in them: the rank
// that has entered the fewest is the one that the others wait for, and the one that waits least
// makes them wait.
std::atomic<uint64_t> collectives_entered{0};
std::atomic<uint64_t> collectives_left{0};
std::atomic<uint64_t> collectives_waited_us{0};

// Counts a collective, also one that fails, or that needs no peer.
struct Counted {
  Counted() { collectives_entered++; }
  ~Counted() {
    const auto waited = std::chrono::steady_clock::now() - begin;
    collectives_waited_us += std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
    collectives_left++;
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
};

// A group that its owner can close while others refer to it, and that another thread can abort.
// After an error, libtorch's autograd engine keeps what was left of the backward pass in a queue of
// its own until the next one, and with it whatever a graph refers to: peers would wait at
// connections that are never used and never closed.
class Group : public torch::CustomClassHolder {
 public:
  // `gpu`: the device of an NCCL group; none for Gloo.
  Group(c10::intrusive_ptr<c10d::Backend> backend, std::optional<at::Device> gpu)
      : backend_(std::move(backend)), gpu_(gpu) {}

  // For the next collective; called by the thread that owns the group, or by the one that runs its
  // backward pass.
  c10d::Backend& get() const {
    if (aborted_) C10_THROW_ERROR(DistNetworkError, "the group was aborted");
    if (!backend_) throw std::runtime_error("the group is closed");
    return *backend_;
  }

  bool is_nccl() const { return gpu_.has_value(); }

  // Makes the communicator now instead of in the first collective. It blocks until all ranks are
  // there.
  void connect() const {
    if (is_nccl()) get().eagerConnectSingleDevice(*gpu_);
  }

  // Waits until the kernels that were launched so far are done; Gloo's collectives are when they
  // return.
  void wait() const {
    if (!is_nccl()) return;
    const Counted counted;
    c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(*gpu_).synchronize();
  }

  // Fails if the group was aborted, or if NCCL has reported an error. After an abort the kernels of
  // its collectives return as if they were done: what they left in their outputs must not be used.
  void check() const {
    if (is_nccl() && get().getError() != c10d::ErrorType::SUCCESS) {
      C10_THROW_ERROR(DistNetworkError, "NCCL reported an error of this rank or of a peer");
    }
    get();
  }

  // From any thread. The flag is set first: a thread that sees a kernel of an aborted collective
  // return sees the flag, too.
  void abort() {
    c10::intrusive_ptr<c10d::Backend> held;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      aborted_ = true;
      held = backend_;
    }
    if (held && is_nccl()) held->abort();
  }

  // ~ProcessGroupNCCL warns, waits and may throw from a noexcept destructor unless it was shut down
  // or aborted before.
  void close() {
    c10::intrusive_ptr<c10d::Backend> held;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      held.swap(backend_);
    }
    if (held && is_nccl() && !aborted_) held->shutdown();
  }

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> aborted_{false};
  c10::intrusive_ptr<c10d::Backend> backend_;
  std::optional<at::Device> gpu_;
};

using GroupRef = c10::intrusive_ptr<Group>;

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

// On NCCL `wait` only makes the current stream wait: what is measured then is the launch.
void finish(const c10::intrusive_ptr<c10d::Work>& work) {
  const Counted counted;
  work->wait();
}

// The tensor that a collective of this group works on. Gloo gets CPU tensors only: it takes CUDA
// tensors in some collectives, and copies them to the CPU itself.
at::Tensor staged(const Group& group, const at::Tensor& tensor) {
  return group.is_nccl() || tensor.is_cpu() ? tensor : tensor.cpu();
}

// Copies a staged result back to where it is wanted.
void unstage(const at::Tensor& staged, const at::Tensor& tensor) {
  if (!staged.is_same(tensor)) tensor.copy_(staged);
}

// Up to here an all-gather and a sum on every rank beat Gloo's all-reduce, whose ring takes twice
// as many hops: 0.6 against 1.0 ms with four ranks on two cores, 0.13 against 0.24 ms with two.
constexpr size_t kSmallBytes = 16 << 10;

// The ranks' summands are added in rank order on every rank, or by Gloo's ring: the same bits on
// all ranks either way.
void all_reduce_sum(const Group& group, const at::Tensor& tensor) {
  auto& backend = group.get();
  if (backend.getSize() == 1) {
    // Progress within a step of a single rank is seen by it, too.
    const Counted counted;
    return;
  }
  const auto summed = staged(group, tensor);
  if (summed.is_cpu() && summed.nbytes() <= kSmallBytes) {
    auto all = at::empty({backend.getSize(), summed.numel()}, summed.options());
    auto row = summed.view({1, -1});
    finish(backend._allgather_base(all, row));
    row.copy_(all.sum(0, /*keepdim=*/true));
  } else {
    std::vector<at::Tensor> tensors{summed};
    finish(backend.allreduce(tensors));
  }
  unstage(summed, tensor);
}

// Begins the message of a collective that failed within a backward pass; `group.rs` looks for it.
constexpr const char* kLostInBackward = "a collective of the backward pass failed: ";

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
    // It reaches Rust as an error of the whole backward pass: the mark distinguishes it from
    // others.
    try {
      all_reduce_sum(*group, gradient);
    } catch (...) {
      throw std::runtime_error(kLostInBackward + describe_current_exception());
    }
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
    finish((*group)->get()._allgather_base(gathered, own));
    unstage(gathered, *output);
  });
}

char* thanos_reduce_scatter(GroupRef* group, at::Tensor* output, at::Tensor* input) {
  return guard([&] {
    auto part = staged(**group, *output);
    auto all = staged(**group, *input);
    finish((*group)->get()._reduce_scatter_base(part, all));
    unstage(part, *output);
  });
}

char* thanos_broadcast(GroupRef* group, at::Tensor* tensor, int32_t root) {
  return guard([&] {
    const auto sent = staged(**group, *tensor);
    std::vector<at::Tensor> tensors{sent};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    finish((*group)->get().broadcast(tensors, options));
    unstage(sent, *tensor);
  });
}

// NCCL's blocks until the device is there, too.
char* thanos_barrier(GroupRef* group) {
  return guard([&] {
    finish((*group)->get().barrier());
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
