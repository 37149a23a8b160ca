//! Times of the CUDA device's operations beside their floors, and of whole batches. A Markdown table each.
//!
//!     cargo bench --features cuda --bench gpu [-- --device 0] [--rows 512,4096] [--rounds 7] [--small]
//!
//! An operation is queued many times and waited for once, so a time is the device's, or the host's where queueing takes
//! longer. Rounds go through all operations in turn; medians. A floor is the longer of bytes over bandwidth and
//! FLOP over rate, both from NVIDIA's data sheet for the card's name; without that it is left out. `--small` is for trying
//! the program on an emulated device.

#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod models;

use std::cell::Cell;
use std::time::Instant;

use anyhow::Context;
use common::value;
use inform::checkpoint::{HeadConfig, MemoryTensors, ModelConfig};
use inform::model::{RewardModel, Scorer, initialise_decoder, initialise_head, standard_normal};
use inform::ops::cuda::CudaOps;
use inform::ops::{DecoderOps, DeviceOps, HeadOps, Packing, QueryRows, WeightOps};
use models::{Shape, shapes};

/// Pieces of products, as the server's default.
const PIECES: [usize; 3] = [128, 512, 2048];

/// Bytes and FLOP a second.
struct Card {
    bandwidth: f64,
    rate: f64,
}

impl Card {
    /// NVIDIA's data sheets: memory bandwidth, and dense bf16 with f32 sums.
    fn of(name: &str) -> Option<Self> {
        let known = [
            ("A100-SXM4-40GB", 1.555e12, 312e12),
            ("A100 80GB PCIe", 1.935e12, 312e12),
            ("A100", 2.039e12, 312e12),
            ("H200", 4.8e12, 989e12),
            ("H100 PCIe", 2.0e12, 756e12),
            ("H100", 3.35e12, 989e12),
            ("B200", 8.0e12, 2250e12),
            ("L40S", 0.864e12, 362e12),
        ];
        let found = known.into_iter().find(|(part, ..)| name.contains(part))?;
        Some(Self { bandwidth: found.1, rate: found.2 })
    }

    fn floor(&self, bytes: f64, flop: f64) -> f64 {
        (bytes / self.bandwidth).max(flop / self.rate)
    }
}

/// One operation to be timed.
struct Case<'a> {
    name: &'static str,
    bytes: f64,
    flop: f64,
    run: Box<dyn Fn() -> anyhow::Result<()> + 'a>,
    seconds: Vec<f64>,
}

impl<'a> Case<'a> {
    fn new<T>(
        name: &'static str,
        (bytes, flop): (f64, f64),
        run: impl Fn() -> anyhow::Result<T> + 'a,
    ) -> Self {
        let run = Box::new(move || run().map(drop));
        Self { name, bytes, flop, run, seconds: Vec::new() }
    }
}

fn main() -> anyhow::Result<()> {
    let ordinal = value("--device")?.unwrap_or(0);
    let rounds: usize = value("--rounds")?.unwrap_or(7);
    let small = common::is_given("--small");
    let default = if small { "32" } else { "512,4096" };
    let rows = value("--rows")?.unwrap_or_else(|| default.to_owned());
    let rows: Vec<usize> = rows.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let pieces: &[usize] = if small { &[16, 32] } else { &PIECES };
    let ops = CudaOps::new(ordinal, pieces)?;
    let card = Card::of(ops.name());
    println!("## {}\n", ops.name());
    if card.is_none() {
        println!("No data sheet of this card is known here: no floors.\n");
    }
    for shape in shapes(small) {
        for &rows in &rows {
            operations(&ops, card.as_ref(), &shape, rows, rounds)?;
        }
    }
    drop(ops);
    for shape in shapes(small) {
        batches(ordinal, pieces, card.as_ref(), &shape, small)?;
    }
    Ok(())
}

/// The operations of one layer on `rows` packed rows, in texts of at most 512 tokens.
fn operations(
    ops: &CudaOps,
    card: Option<&Card>,
    shape: &Shape,
    rows: usize,
    rounds: usize,
) -> anyhow::Result<()> {
    let config = shape.decoder(1);
    let (hidden, inner, attention) =
        (config.hidden_size, config.intermediate_size, config.attention);
    let mut source = MemoryTensors::default();
    let mut add = |name: &str, outputs: usize, columns: usize| {
        let values = standard_normal(3, outputs as u64, outputs * columns);
        source.insert(name, &[outputs, columns], values);
    };
    add("qkv", attention.qkv_columns(), hidden);
    add("output", hidden, attention.output_columns());
    add("gate", inner, hidden);
    add("up", inner, hidden);
    add("down", hidden, inner);
    source.insert("scale", &[hidden], vec![1.0; hidden]);
    source.insert(
        "scale of attention",
        &[attention.output_columns()],
        vec![1.0; attention.output_columns()],
    );
    source.insert("scale of the MLP", &[inner], vec![1.0; inner]);
    let matrix = |columns| ops.upload(standard_normal(4, 0, rows * columns), columns);
    let operand = |name: &str, columns| {
        anyhow::Ok(ops.norm(&matrix(columns)?, &ops.scale(&source, name, columns)?, 1e-5)?)
    };
    let scale = ops.scale(&source, "scale", hidden)?;
    let x = matrix(hidden)?;
    let normed = operand("scale", hidden)?;
    let attended = operand("scale of attention", attention.output_columns())?;
    let activated = operand("scale of the MLP", inner)?;
    let qkv = ops.weight(&source, &[("qkv", attention.qkv_columns())], hidden)?;
    let output = ops.weight(&source, &[("output", hidden)], attention.output_columns())?;
    let gated = ops.gated_weight(&source, "gate", "up", inner, hidden)?;
    let down = ops.weight(&source, &[("down", hidden)], inner)?;

    let lengths: Vec<usize> = (0..rows).step_by(512).map(|row| (rows - row).min(512)).collect();
    let packing = common::packing(&lengths);
    let layout = ops.layout(&packing, &attention)?;
    let projection = {
        let work = |ops: &CudaOps, _, x| Ok((x, ops.linear(&normed, &qkv)?));
        ops.next_projection(matrix(hidden)?, None, &layout, &attention, QueryRows::All, work)?.1
    };
    let pairs: f64 = lengths.iter().map(|&n| (n * (n + 1) / 2) as f64).sum();

    let (n, h, i) = (rows as f64, hidden as f64, inner as f64);
    let (q, a) = (attention.qkv_columns() as f64, attention.output_columns() as f64);
    let product = |from: f64, to: f64, out: f64| {
        (2.0 * (n * from + from * to) + out * n * to, 2.0 * n * from * to)
    };
    let asked = product(h, q, 4.0);
    let gated_product = product(h, 2.0 * i, 2.0);
    // Handed through, as the residual stream is; it is added to in place, whatever it grows to.
    let residual = Cell::new(Some(matrix(hidden)?));
    let take = || residual.take().context("it is always put back");
    let add = |x, weight| {
        residual.set(Some(ops.linear_add(x, weight, take()?)?));
        anyhow::Ok(())
    };
    let attend = || {
        let work = |ops: &CudaOps, _, x| Ok((x, ops.linear(&normed, &qkv)?));
        let (x, _) = ops.next_projection(
            take()?,
            Some(&projection),
            &layout,
            &attention,
            QueryRows::All,
            work,
        )?;
        residual.set(Some(x));
        Ok(())
    };
    let mut cases = [
        Case::new("norm", (6.0 * n * h, 4.0 * n * h), || Ok(ops.norm(&x, &scale, 1e-5)?)),
        Case::new("q, k, v product", asked, || Ok(ops.linear(&normed, &qkv)?)),
        Case::new(
            "the same, rotary and attention",
            (asked.0 + 6.0 * n * q + 2.0 * n * (q + a), asked.1 + 4.0 * pairs * a),
            attend,
        ),
        Case::new("output product, added", product(a, h, 8.0), || add(&attended, &output)),
        Case::new(
            "gate and up product, SwiGLU",
            (gated_product.0 + 6.0 * n * i, gated_product.1),
            || Ok(ops.gated_linear(&normed, &gated)?),
        ),
        Case::new("down product, added", product(i, h, 8.0), || add(&activated, &down)),
    ];

    for round in 0..=rounds {
        for case in &mut cases {
            let repeats = if rows * hidden > 1 << 22 { 20 } else { 50 };
            ops.read(&ops.columns(&x, 0, 1)?)?;
            let started = Instant::now();
            for _ in 0..repeats {
                (case.run)()?;
            }
            ops.read(&ops.columns(&x, 0, 1)?)?;
            // The first round warms up.
            if round > 0 {
                case.seconds.push(started.elapsed().as_secs_f64() / f64::from(repeats));
            }
        }
    }
    println!("### {}, one layer, {rows} rows\n", shape.name);
    println!("| operation | µs | floor, µs | floor / time |\n|---|---|---|---|");
    for case in &mut cases {
        let seconds = median(&mut case.seconds);
        match card.map(|card| card.floor(case.bytes, case.flop)) {
            Some(floor) => println!(
                "| {} | {:.1} | {:.1} | {:.2} |",
                case.name,
                seconds * 1e6,
                floor * 1e6,
                floor / seconds
            ),
            None => println!("| {} | {:.1} | | |", case.name, seconds * 1e6),
        }
    }
    println!();
    Ok(())
}

/// Whole batches through a model with random weights.
fn batches(
    ordinal: usize,
    pieces: &[usize],
    card: Option<&Card>,
    shape: &Shape,
    small: bool,
) -> anyhow::Result<()> {
    let decoder = shape.decoder(shape.layers);
    let head =
        HeadConfig::inform(if small { 16 } else { 128 }, inform::checkpoint::DecodeKind::Linear);
    let mut tensors = MemoryTensors::default();
    initialise_decoder(&mut tensors, &decoder, 0);
    initialise_head(&mut tensors, &head, decoder.hidden_size, 0);
    let config = ModelConfig { decoder, head, reward_scale: None };
    let model = RewardModel::load(CudaOps::new(ordinal, pieces)?, &config, &tensors)?;
    drop(tensors);
    let decoder = &config.decoder;
    let per_layer = decoder.hidden_size
        * (decoder.attention.qkv_columns()
            + decoder.attention.output_columns()
            + 3 * decoder.intermediate_size);
    println!("### {}, {} layers, whole batches\n", shape.name, shape.layers);
    println!("| texts x tokens | ms | tokens/s | product floor / time |\n|---|---|---|---|");
    let cases: &[(usize, usize)] =
        if small { &[(2, 16)] } else { &[(1, 16), (1, 512), (16, 512), (64, 128), (4, 2048)] };
    for &(texts, tokens) in cases {
        let packing: Packing = common::packing(&vec![tokens; texts]);
        model.score_packed(&packing)?;
        let mut seconds: Vec<f64> = Vec::new();
        for _ in 0..7 {
            let started = Instant::now();
            model.score_packed(&packing)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        let seconds = median(&mut seconds);
        let count = (texts * tokens) as f64;
        let flop = 2.0 * (per_layer * shape.layers) as f64 * count;
        let bytes = 2.0 * (per_layer * shape.layers) as f64;
        let share =
            card.map_or(String::new(), |card| format!("{:.2}", card.floor(bytes, flop) / seconds));
        println!(
            "| {texts} x {tokens} | {:.2} | {:.0} | {share} |",
            seconds * 1e3,
            count / seconds
        );
    }
    println!();
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
