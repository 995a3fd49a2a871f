//! Views made in tensor operations, as a GPU makes them, are those of the CPU: the same draws, and
//! pixels within 2/255 (in truth, within float rounding). The tensors are on the device under test,
//! by default the CPU: the operations are the same on every device.

use crate::print_line;
use crate::test_device::test_device;
use tch::{Device, Tensor};
use thanos_configs::{SplitMix64, ViewsConfig, view_key};
use thanos_views::{Augmentation, Scratch};
use thanos_worker::device_views::{plain_on_device, views_by_kernel, views_on_device};

const IMAGES: usize = 64;
const MAX_DIFFERENCE: f64 = 2.0 / 255.0;

#[test]
fn device_views_match_cpu() {
    let device = test_device();
    let mut worst: f64 = 0.0;
    for (side, channels) in [(32, 3), (64, 3), (28, 1), (8, 1)] {
        // Without normalisation: values are pixels in [0, 1].
        let views = Augmentation::new(
            &ViewsConfig::default(),
            side,
            &vec![0.0; channels],
            &vec![1.0; channels],
        );
        let mut stream = SplitMix64::new(5);
        let pixels: Vec<u8> =
            (0..IMAGES * views.pixels()).map(|_| stream.next_u64() as u8).collect();
        let keys: Vec<u64> = (0..IMAGES as u64).map(|id| view_key(1, 2, id, id % 2)).collect();
        let mut expected = vec![0.0; pixels.len()];
        let mut scratch = Scratch::default();
        for (at, out) in expected.chunks_exact_mut(views.pixels()).enumerate() {
            views.view(
                &pixels[at * views.pixels()..(at + 1) * views.pixels()],
                keys[at],
                &mut scratch,
                out,
            );
        }
        let (n, s, c) = (IMAGES as i64, side as i64, channels as i64);
        let images = Tensor::from_slice(&pixels).reshape([n, s, s, c]).to_device(device);
        let expected = Tensor::from_slice(&expected).reshape([n, c, s, s]);
        // Of the second half of the images only, in another order: the kernel reads rows of a whole
        // data set.
        let rows: Vec<i64> = (n / 2..n).rev().collect();
        let some_keys: Vec<u64> = rows.iter().map(|&row| keys[row as usize]).collect();
        let by_kernel = views_by_kernel(&views, &images, &rows, &some_keys).expect("views");
        let of_rows = expected.index_select(0, &Tensor::from_slice(&rows));
        assert!(
            by_kernel.to_device(Device::Cpu).equal(&of_rows),
            "{side} x {side} x {channels}: not the CPU's bits"
        );
        let ways = [
            (views_on_device(&views, &images, &keys), expected.shallow_clone()),
            (by_kernel, of_rows),
        ];
        for (found, expected) in ways {
            assert_eq!(found.device(), device);
            assert_eq!(found.size(), expected.size());
            let apart = (found.to_device(Device::Cpu) - expected).abs().max().double_value(&[]);
            assert!(apart < MAX_DIFFERENCE, "{side} x {side} x {channels}: {apart} apart");
            assert!(
                apart < 1e-4,
                "{side} x {side} x {channels}: {apart} apart, more than rounding"
            );
            worst = worst.max(apart);
        }
    }
    print_line(&format!("views made on {device:?} are within {worst:.1e} of the CPU's"));
}

#[test]
fn plain_images_match_the_cpu_to_the_bit() {
    for (side, channels) in [(32, 3), (28, 1)] {
        let (mean, std) = (vec![0.49; channels], vec![0.21; channels]);
        let views = Augmentation::new(&ViewsConfig::default(), side, &mean, &std);
        let mut stream = SplitMix64::new(6);
        let pixels: Vec<u8> =
            (0..IMAGES * views.pixels()).map(|_| stream.next_u64() as u8).collect();
        let mut expected = vec![0.0; pixels.len()];
        for (image, out) in
            pixels.chunks_exact(views.pixels()).zip(expected.chunks_exact_mut(views.pixels()))
        {
            views.plain(image, out);
        }
        let (n, s, c) = (IMAGES as i64, side as i64, channels as i64);
        let found = plain_on_device(&views, &Tensor::from_slice(&pixels).reshape([n, s, s, c]));
        assert_eq!(found, Tensor::from_slice(&expected).reshape([n, c, s, s]));
    }
}
