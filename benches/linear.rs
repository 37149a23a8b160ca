//! The four products of a layer of SmolLM2-135M. Elements a second are FLOP/s: 2 x rows x in x out.
//!
//!     cargo bench --bench linear
//!
//! With `--serve-stdin` it measures what `benches/peers/linear.py` asks for: one product and precision a
//! line.

#![allow(missing_docs)]

mod common;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use common::{devices, is_given, operand, serve, value};
use criterion::{BenchmarkId, Criterion, Throughput};
use inform::checkpoint::MemoryTensors;
use inform::model::standard_normal;
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DecoderOps, DeviceOps, WeightOps};
use serde::Deserialize;
use serde_json::json;

/// Name, inputs, outputs, and whether the product is that of a gated MLP, which has the outputs twice.
const PRODUCTS: [(&str, Product); 4] = [
    ("qkv", Product { inputs: 576, outputs: 960, gated: false }),
    ("attention_output", Product { inputs: 576, outputs: 576, gated: false }),
    ("gate_up", Product { inputs: 576, outputs: 1536, gated: true }),
    ("down", Product { inputs: 1536, outputs: 576, gated: false }),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
struct Product {
    inputs: usize,
    outputs: usize,
    gated: bool,
}

enum Weight {
    Plain(<CpuOps as WeightOps>::Weight),
    Gated(<CpuOps as WeightOps>::GatedWeight),
}

impl Product {
    fn flop(self, rows: usize) -> u64 {
        let kinds = if self.gated { 2 } else { 1 };
        (2 * rows * self.inputs * self.outputs * kinds) as u64
    }

    fn weight(self, ops: &CpuOps) -> anyhow::Result<Weight> {
        let mut source = MemoryTensors::default();
        for (stream, name) in ["gate", "up"].into_iter().enumerate() {
            let values = standard_normal(1, stream as u64, self.outputs * self.inputs);
            source.insert(name, &[self.outputs, self.inputs], values);
        }
        let Self { inputs, outputs, gated } = self;
        Ok(if gated {
            Weight::Gated(ops.gated_weight(&source, "gate", "up", outputs, inputs)?)
        } else {
            Weight::Plain(ops.weight(&source, &[("up", outputs)], inputs)?)
        })
    }
}

impl Weight {
    fn multiply(&self, ops: &CpuOps, x: &<CpuOps as DeviceOps>::Operand) {
        match self {
            Self::Plain(weight) => drop(black_box(ops.linear(x, weight))),
            Self::Gated(weight) => drop(black_box(ops.gated_linear(x, weight))),
        }
    }
}

fn bench(criterion: &mut Criterion) {
    for ops in devices(0) {
        let mut group = criterion.benchmark_group(format!("linear/{}", ops.precision().name()));
        for (name, product) in PRODUCTS {
            let weight = product.weight(&ops).expect("given shapes");
            for rows in [96, 4096] {
                let x = operand(&ops, rows, product.inputs);
                group.throughput(Throughput::Elements(product.flop(rows)));
                group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                    bencher.iter(|| weight.multiply(&ops, &x));
                });
            }
        }
        group.finish();
    }
}

#[derive(Deserialize)]
struct Request {
    precision: Precision,
    product: Product,
    rows: usize,
    /// Products whose time is added up.
    repeats: u32,
}

fn answer_requests() -> anyhow::Result<()> {
    let devices = devices(value("--threads")?.unwrap_or(0));
    let mut weights = HashMap::new();
    let mut operands = HashMap::new();
    serve(|request: Request| {
        let Request { precision, product, rows, repeats } = request;
        let device = devices.iter().position(|ops| ops.precision() == precision);
        let Some(device) = device else { return Ok(json!({ "seconds": null })) };
        ensure!(rows > 0 && repeats > 0, "`rows` and `repeats` begin at 1");
        let ops = &devices[device];
        let weight = match weights.entry((device, product)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(product.weight(ops)?),
        };
        let x = operands
            .entry((device, rows, product.inputs))
            .or_insert_with(|| operand(ops, rows, product.inputs));
        weight.multiply(ops, x);
        let started = Instant::now();
        for _ in 0..repeats {
            weight.multiply(ops, x);
        }
        Ok(json!({ "seconds": started.elapsed().as_secs_f64() / f64::from(repeats) }))
    })
}

fn main() -> anyhow::Result<()> {
    if is_given("--serve-stdin") {
        return answer_requests();
    }
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
    Ok(())
}
