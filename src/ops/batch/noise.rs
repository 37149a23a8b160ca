//! Noise for the reparameterised latent, the same on every device: a counter-based generator.

/// One block of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// `count` independent standard normal numbers: stream `stream` of the generator with key `seed`.
/// Each Philox block gives four by the Box-Muller transform. The numbers of a stream do not depend
/// on `count`.
pub fn standard_normal(seed: u64, stream: u64, count: usize) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut values = Vec::with_capacity(count.next_multiple_of(4));
    for block in 0..count.div_ceil(4) as u64 {
        let counter = [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32];
        let bits = philox(counter, key);
        for pair in [[bits[0], bits[1]], [bits[2], bits[3]]] {
            // In (0, 1]: the logarithm stays finite.
            let uniform = (f64::from(pair[0]) + 1.0) / 4_294_967_296.0;
            let angle = f64::from(pair[1]) / 4_294_967_296.0 * std::f64::consts::TAU;
            let radius = (-2.0 * uniform.ln()).sqrt();
            values.push((radius * angle.cos()) as f32);
            values.push((radius * angle.sin()) as f32);
        }
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of the Random123 library.
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_numbers_have_the_right_moments_and_streams_differ() {
        let values = standard_normal(7, 3, 100_000);
        let count = values.len() as f64;
        let moment = |p: i32| values.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / count;
        assert!(moment(1).abs() < 0.02, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.15, "fourth moment {}", moment(4));
        assert_ne!(values[..4], standard_normal(7, 4, 4)[..]);
        assert_eq!(values[..5], standard_normal(7, 3, 5)[..]);
    }
}
