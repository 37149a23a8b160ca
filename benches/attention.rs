//! Causal attention, and the rotary embedding and storing of the next layer's keys and values, with SmolLM2-135M's heads, over packed sequences. Elements a
//! second are FLOP/s of both products: 4 x heads x head_dim x pairs of a token and one before it or itself.
//!
//!     cargo bench --bench attention

#![allow(missing_docs)]

mod common;

use std::hint::black_box;

use common::{decoder, devices, mixed_lengths, packing};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use inform::model::standard_normal;
use inform::ops::cpu::CpuOps;
use inform::ops::{DecoderOps, DeviceOps, HeadOps, Packing, QueryRows};

/// Four prompts of 256 tokens with eight answers of 64 each, prompts packed once.
fn prompts_with_answers() -> Packing {
    let tokens = |stream, count| {
        let noise = standard_normal(3, stream, count);
        noise.into_iter().map(|value| value.to_bits() >> 3 & 1023).collect::<Vec<u32>>()
    };
    let sequences: Vec<Vec<u32>> =
        (0..32).map(|i| [tokens(i / 8, 256), tokens(100 + i, 64)].concat()).collect();
    Packing::shared(&sequences).expect("no length is zero")
}

/// Pairs of a token that asks and one that it sees.
fn pairs(packing: &Packing) -> usize {
    packing.positions().iter().map(|position| position + 1).sum()
}

fn bench(criterion: &mut Criterion) {
    let shape = decoder(1).attention;
    let cases = [
        ("16 of 256", packing(&[256; 16])),
        ("1 of 2048", packing(&[2048])),
        ("128 mixed", packing(&mixed_lengths())),
        ("4 prompts of 256, 8 answers of 64 each", prompts_with_answers()),
    ];
    for ops in devices(0) {
        let mut group = criterion.benchmark_group(format!("attention/{}", ops.precision().name()));
        for (name, packing) in &cases {
            let columns = shape.qkv_columns();
            let values = standard_normal(0, 0, packing.rows() * columns);
            let layout = ops.layout(packing, &shape).expect("host memory");
            let flop = 4 * shape.output_columns() * pairs(packing);
            group.throughput(Throughput::Elements(flop as u64));
            let upload = || ops.upload(values.clone(), columns).expect("host memory");
            // The rows are their own projection.
            let work = |ops: &CpuOps, attended: Option<_>, rows: <CpuOps as DeviceOps>::Matrix| {
                black_box(attended);
                Ok((ops.columns(&rows, 0, columns)?, rows))
            };
            let advance = |rows, projection| {
                ops.next_projection(rows, projection, &layout, &shape, QueryRows::All, work)
                    .expect("host memory")
            };
            let (_, projection) = advance(upload(), None);
            group.bench_function(*name, |bencher| {
                bencher.iter_batched(
                    upload,
                    |rows| black_box(advance(rows, Some(&projection))),
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
