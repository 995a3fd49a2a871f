//! Images and labels between a reader of raw files and a pack.

use thanos_formats::Skipped;

/// Called with how many images of a split are decoded, of how many; from any thread.
pub(super) type OnProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Train,
    Test,
}

impl Split {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Decoded images, [N, H, W, C] u8, and their fine labels, [N], each below the number of classes.
#[derive(Default)]
pub(super) struct Samples {
    pub(super) images: Vec<u8>,
    pub(super) fine: Vec<i64>,
}

impl Samples {
    pub(super) fn with_capacity(images: usize, bytes_of_each: usize) -> Self {
        Self {
            images: Vec::with_capacity(images * bytes_of_each),
            fine: Vec::with_capacity(images),
        }
    }
}

/// What is known of a split when its images are in its pack.
#[derive(Default)]
pub(super) struct Decoded {
    /// [N].
    pub(super) fine: Vec<i64>,
    pub(super) skipped: Vec<Skipped>,
    /// What is unusual about its images, a sentence each.
    pub(super) warnings: Vec<String>,
    /// What the images were decoded from and how: see `PackNotes`.
    pub(super) pixels: String,
}
