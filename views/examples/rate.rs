//! Views a second on one core, of random images as `benches/torchvision_views.py` makes them: one
//! JSON line a side.
#![allow(
    clippy::print_stdout,
    reason = "an example of one line per side, whose reader is a script"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};
use thanos_configs::{SplitMix64, ViewsConfig};
use thanos_views::{Augmentation, Scratch};

const SIDES: [usize; 2] = [32, 64];
const IMAGES: usize = 1024;
const MIN_DURATION: Duration = Duration::from_secs(1);

fn main() {
    for side in SIDES {
        let views = Augmentation::new(
            &ViewsConfig::default(),
            side,
            &[0.491, 0.482, 0.447],
            &[0.247, 0.243, 0.262],
        );
        let mut stream = SplitMix64::new(1);
        let pixels: Vec<u8> =
            (0..IMAGES * views.pixels()).map(|_| stream.next_u64() as u8).collect();
        let (mut scratch, mut out) = (Scratch::default(), vec![0.0; views.pixels()]);
        let mut pass = |epoch: u64| {
            for (id, image) in pixels.chunks_exact(views.pixels()).enumerate() {
                views.view(image, epoch << 32 | id as u64, &mut scratch, &mut out);
                black_box(&out);
            }
        };
        pass(0);
        let started = Instant::now();
        let mut passes = 0;
        while started.elapsed() < MIN_DURATION {
            passes += 1;
            pass(passes);
        }
        let rate = passes as f64 * IMAGES as f64 / started.elapsed().as_secs_f64();
        println!("{{\"side\": {side}, \"views_per_s_per_core\": {rate:.0}}}");
    }
}
