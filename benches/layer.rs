//! One whole layer of SmolLM2-135M: norms, projections, attention and MLP of every token. Elements are
//! tokens.
//!
//!     cargo bench --bench layer
//!
//! The last layer of a model computes only what pooled tokens need, so a whole layer's time is what four
//! more layers add, divided by four.

#![allow(missing_docs)]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{decoder, devices, mixed_lengths, packing};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use inform::checkpoint::MemoryTensors;
use inform::model::{Decoder, initialise_decoder};
use inform::ops::Packing;
use inform::ops::cpu::CpuOps;

const MORE: u32 = 4;

fn bench(criterion: &mut Criterion) {
    let cases = [
        ("16 of 256", packing(&[256; 16])),
        ("128 mixed", packing(&mixed_lengths())),
        ("96 tokens", packing(&[96])),
    ];
    for ops in devices(0) {
        let load = |layers: u32| {
            let config = decoder(layers as usize);
            let mut tensors = MemoryTensors::default();
            initialise_decoder(&mut tensors, &config, 0);
            Decoder::load(&ops, &config, &tensors, 0).expect("shapes of its own")
        };
        let (few, many) = (load(1), load(1 + MORE));
        let time = |model: &Decoder<CpuOps>, packing: &Packing| {
            let started = Instant::now();
            let x = model.embed(&ops, packing).expect("host memory");
            black_box(model.pooled(&ops, packing, x).expect("host memory"));
            started.elapsed()
        };
        let mut group = criterion.benchmark_group(format!("layer/{}", ops.precision().name()));
        group
            .sample_size(20)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for (name, packing) in &cases {
            group.throughput(Throughput::Elements(packing.rows() as u64));
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|iterations| {
                    let (mut most, mut least) = (Duration::ZERO, Duration::ZERO);
                    for _ in 0..iterations {
                        most += time(&many, packing);
                        least += time(&few, packing);
                    }
                    most.saturating_sub(least) / MORE
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
