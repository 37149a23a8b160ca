//! InfoRM heads on the pooled hidden states of SmolLM2-135M, in f32 as always: final norm, posterior and reward, from
//! its mean. Elements are sequences.
//!
//!     cargo bench --bench head

#![allow(missing_docs)]

mod common;

use std::hint::black_box;

use common::matrix;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use inform::checkpoint::{DecodeKind, HeadConfig, MemoryTensors};
use inform::model::{Head, initialise_head};
use inform::ops::WeightOps;
use inform::ops::cpu::{CpuOps, Precision};

const HIDDEN: usize = 576;

fn bench(criterion: &mut Criterion) {
    let ops = CpuOps::new(0, Precision::F32).expect("every processor has f32");
    let mut group = criterion.benchmark_group("head");
    for (name, decode) in [("linear", DecodeKind::Linear), ("gated", DecodeKind::Gated)] {
        let config = HeadConfig::inform(128, decode);
        let mut tensors = MemoryTensors::default();
        initialise_head(&mut tensors, &config, HIDDEN, 0);
        tensors.insert("norm", &[HIDDEN], vec![1.0; HIDDEN]);
        let scale = ops.scale(&tensors, "norm", HIDDEN).expect("given above");
        let head = Head::load(&ops, &config, HIDDEN, &tensors).expect("shapes of its own");
        for sequences in [1, 32, 256] {
            let hidden = matrix(&ops, sequences, HIDDEN);
            group.throughput(Throughput::Elements(sequences as u64));
            group.bench_function(BenchmarkId::new(name, sequences), |bencher| {
                bencher.iter(|| black_box(head.forward(&ops, &hidden, (&scale, 1e-5), None)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
