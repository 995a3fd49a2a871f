//! Mean and std of pixels, summed exactly as they are read. It knows no file.

/// Sums of [.., C] u8 by channel. They are whole numbers, so no order of summing matters.
pub(super) struct Moments {
    /// Of values, and of their squares.
    sums: Vec<(u64, u64)>,
    pixels: u64,
}

impl Moments {
    pub(super) fn new(channels: usize) -> Self {
        Self { sums: vec![(0, 0); channels], pixels: 0 }
    }

    pub(super) fn add(&mut self, images: &[u8]) {
        let channels = self.sums.len();
        for (channel, (sum, squares)) in self.sums.iter_mut().enumerate() {
            for value in images.iter().skip(channel).step_by(channels) {
                let value = u64::from(*value);
                *sum += value;
                *squares += value * value;
            }
        }
        self.pixels += (images.len() / channels) as u64;
    }

    /// Of values taken as [0, 1], one a channel; std is the population's.
    pub(super) fn mean_and_std(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.pixels as f64;
        let measure = |(sum, squares): &(u64, u64)| {
            let mean = *sum as f64 / n;
            let variance = (*squares as f64 / n - mean * mean).max(0.0);
            (mean / 255.0, variance.sqrt() / 255.0)
        };
        self.sums.iter().map(measure).unzip()
    }
}
