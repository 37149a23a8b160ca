//! What the benchmarks measure with: SmolLM2-135M's shapes, devices, random values, and a loop that answers
//! the requests of the scripts in `benches/peers`.

#![allow(dead_code)]

use std::io::{BufRead, Write};
use std::str::FromStr;

use anyhow::anyhow;
use inform::checkpoint::{Architecture, DecoderConfig, MemoryTensors};
use inform::layer::AttentionShape;
use inform::model::standard_normal;
use inform::ops::cpu::{CpuOps, Precision};
use inform::ops::{DecoderOps, DeviceOps, Packing, WeightOps};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// As in both binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// SmolLM2-135M with fewer layers and, since tokens are only looked up, a smaller vocabulary.
pub(crate) fn decoder(layers: usize) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 1024,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: layers,
        attention: AttentionShape {
            heads: 9,
            key_value_heads: 3,
            head_dim: 64,
            rope_theta: 100_000.0,
            ..AttentionShape::default()
        },
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        architecture: Architecture::default(),
    }
}

/// One device for each precision that this processor has, with `threads` threads, 0 for one a processor.
pub(crate) fn devices(threads: usize) -> Vec<CpuOps> {
    [Precision::Bf16, Precision::F32]
        .into_iter()
        .filter_map(|precision| CpuOps::new(threads, precision).ok())
        .collect()
}

/// A matrix of normal values `[rows, columns]`.
pub(crate) fn matrix(ops: &CpuOps, rows: usize, columns: usize) -> <CpuOps as DeviceOps>::Matrix {
    ops.upload(standard_normal(0, 0, rows * columns), columns).expect("host memory")
}

/// A matrix `[rows, columns]` as products read it.
pub(crate) fn operand(ops: &CpuOps, rows: usize, columns: usize) -> <CpuOps as DeviceOps>::Operand {
    let mut source = MemoryTensors::default();
    source.insert("ones", &[columns], vec![1.0; columns]);
    let ones = ops.scale(&source, "ones", columns).expect("given above");
    ops.norm(&matrix(ops, rows, columns), &ones, 1e-5).expect("host memory")
}

/// Sequences of random tokens, each of its own; laid end to end.
pub(crate) fn packing(lengths: &[usize]) -> Packing {
    let sequences: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let noise = standard_normal(1, i as u64, length);
            noise.into_iter().map(|value| value.to_bits() >> 3 & 1023).collect()
        })
        .collect();
    Packing::new(&sequences).expect("no length is zero")
}

/// 128 lengths spread as those of HH-RLHF's texts are: log-normal, mean near 149.
pub(crate) fn mixed_lengths() -> Vec<usize> {
    let spread = standard_normal(2, 0, 128).into_iter();
    spread.map(|z| (110.0 * (0.78 * z).exp()).round().max(1.0) as usize).collect()
}

/// Whether the process was started with this flag.
pub(crate) fn is_given(flag: &str) -> bool {
    std::env::args().any(|argument| argument == flag)
}

/// What stands behind a flag.
///
/// # Errors
/// A value that cannot be read as a `T`.
pub(crate) fn value<T: FromStr>(flag: &str) -> anyhow::Result<Option<T>> {
    let mut rest = std::env::args().skip_while(|argument| argument != flag).skip(1);
    let read =
        |value: String| value.parse().map_err(|_| anyhow!("{flag}: not as expected: {value}"));
    rest.next().map(read).transpose()
}

/// Reads a JSON request from each line of standard input and writes the answer as a line, `{"error"}` where
/// there is none, until the input ends.
pub(crate) fn serve<R: DeserializeOwned>(
    mut answer: impl FnMut(R) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?).map_err(Into::into).and_then(&mut answer);
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
