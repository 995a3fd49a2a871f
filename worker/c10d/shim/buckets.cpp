// Sums gradients over the ranks in buckets, while the backward pass makes the others.
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "group.h"
#include "guard.h"

using namespace thanos;

namespace {

// A row of gradients in parts, the buckets. Each is summed as soon as all of its gradients are
// there, the last bucket first, as a backward pass makes the gradients of the last layers first.
// The order is fixed, whatever is ready when: all ranks must call the same collectives in it.
class Buckets {
 public:
  // `row` has the gradients of `parameters` one after the other; bucket b ends before parameter
  // `ends[b]`.
  Buckets(GroupRef group, std::vector<at::Tensor> parameters, at::Tensor row,
          const std::vector<size_t>& ends)
      : group_(std::move(group)), parameters_(std::move(parameters)) {
    int64_t bucket_begin = 0, begin = 0;
    for (size_t p = 0; p < parameters_.size(); p++) {
      bucket_of_.push_back(rows_.size());
      parts_.push_back(row.narrow(0, begin, parameters_[p].numel()));
      begin += parameters_[p].numel();
      if (p + 1 == ends[rows_.size()]) {
        rows_.push_back(row.narrow(0, bucket_begin, begin - bucket_begin));
        bucket_begin = begin;
      }
    }
    // Last, as they refer to this object.
    for (size_t p = 0; p < parameters_.size(); p++) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameters_[p],
                                                     std::make_unique<Hook>(*this, p));
    }
  }

  ~Buckets() {
    for (const auto& parameter : parameters_) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }

  Buckets(const Buckets&) = delete;
  Buckets& operator=(const Buckets&) = delete;

  // Before a backward pass.
  void begin() {
    works_.clear();
    is_there_.assign(parameters_.size(), false);
    missing_.assign(rows_.size(), 0);
    for (const auto bucket : bucket_of_) missing_[bucket]++;
    next_ = rows_.size();
    is_open_ = true;
  }

  // After it: a parameter that it did not reach has a gradient of 0. Returns when all is summed.
  void finish() {
    for (size_t p = 0; p < parameters_.size(); p++) {
      if (!is_there_[p]) parts_[p].zero_();
    }
    std::fill(missing_.begin(), missing_.end(), 0);
    launch();
    is_open_ = false;
    for (const auto& work : works_) thanos::finish(*group_, work);
    works_.clear();
  }

 private:
  struct Hook : torch::autograd::PostAccumulateGradHook {
    Hook(Buckets& buckets, size_t parameter) : buckets(buckets), parameter(parameter) {}
    void operator()(const at::Tensor&) override { buckets.take(parameter); }

    Buckets& buckets;
    size_t parameter;
  };

  // A gradient is there: the row gets it.
  void take(size_t p) {
    if (!is_open_) return;
    at::NoGradGuard no_grad;
    if (is_there_[p]) throw std::runtime_error("a parameter has two gradients in one pass");
    parts_[p].copy_(parameters_[p].grad().reshape({-1}));
    is_there_[p] = true;
    missing_[bucket_of_[p]]--;
    within_backward([&] { launch(); });
  }

  // Begins to sum the buckets that are complete and whose turn it is.
  void launch() {
    for (; next_ > 0 && missing_[next_ - 1] == 0; next_--) {
      std::vector<at::Tensor> tensors{rows_[next_ - 1]};
      works_.push_back(group_->get().allreduce(tensors));
    }
  }

  GroupRef group_;
  std::vector<at::Tensor> parameters_;
  // Of each parameter, and its part of the row.
  std::vector<size_t> bucket_of_;
  std::vector<at::Tensor> parts_;
  // Of each bucket.
  std::vector<at::Tensor> rows_;
  // Of the backward pass that is under way.
  bool is_open_ = false;
  std::vector<bool> is_there_;
  std::vector<size_t> missing_;
  size_t next_ = 0;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

}  // namespace

extern "C" {

char* thanos_buckets_create(GroupRef* group, size_t count, at::Tensor* const* parameters,
                            at::Tensor* row, size_t buckets, const size_t* ends, Buckets** out) {
  return guard([&] {
    std::vector<at::Tensor> all;
    for (size_t p = 0; p < count; p++) all.push_back(*parameters[p]);
    *out = new Buckets(*group, std::move(all), *row, {ends, ends + buckets});
  });
}

char* thanos_buckets_begin(Buckets* buckets) {
  return guard([&] { buckets->begin(); });
}

char* thanos_buckets_finish(Buckets* buckets) {
  return guard([&] {
    at::NoGradGuard no_grad;
    buckets->finish();
  });
}

void thanos_buckets_free(Buckets* buckets) {
  free(guard([&] { delete buckets; }));
}

}  // extern "C"
