//! A reward depends on the text alone: no bit of a reward or a latent changes with the batch, the order,
//! the token budget, the threads, or the sharing of prefixes.
//!
//! Every text is scored alone, then in random compositions of batches; all numbers are compared as bits.
//! With SmolLM2-135M (`SMOLLM2_FOLDER`, as in `tests/slow/smollm2.rs`) a short run is part of the suite, and
//! the whole is
//!
//!     cargo test --release --test integration invariance -- --ignored --nocapture

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use crate::support::golden::{bits, golden};
use inform::checkpoint::{DecodeKind, FolderTensors, HeadConfig, ModelConfig};
use inform::model::{Aggregate, Aggregation, Ensemble, MemberSource, RewardModel, Scorer};
use inform::ops::Packing;
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::init_head;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TEXTS: usize = 64;
/// Lengths around which blocks, tiles and shared prefixes end.
const EDGES: [usize; 18] =
    [15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 256, 257];

#[test]
fn demo_bf16() {
    demo().run_on_cpu(Precision::Bf16);
}

#[test]
fn demo_f32() {
    demo().run_on_cpu(Precision::F32);
}

fn demo() -> Trial {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo");
    Trial { folder, longest: 1500, compositions: 200, progress: false }
}

/// Odd widths, head counts that do not group, a gated and a standard head.
#[test]
fn tiny_checkpoints() {
    for name in ["tiny/linear", "tiny/gated", "tiny/standard"] {
        let folder = golden(name);
        both_precisions(&Trial { folder, longest: 500, compositions: 100, progress: false });
    }
}

/// Every operation that Llama has not: windows, soft-caps, frequencies of two kinds, biases, GELU, layer norm, partial
/// rotation, norms of heads and before the residual.
#[test]
fn families() {
    for name in ["mistral", "qwen2_sliding", "gpt_neox", "phi3", "gemma2", "gemma3"] {
        let folder = golden("families").join(name);
        both_precisions(&Trial { folder, longest: 400, compositions: 60, progress: false });
    }
}

/// Members that share a backbone and one of another, with heads of every kind; every member's numbers are compared, too.
#[test]
fn ensemble() {
    let folder = |name| golden("ensemble").join(name);
    let members = ["first", "second", "third"].map(|name| {
        (ModelConfig::read(&folder(name)).unwrap(), FolderTensors::open(&folder(name)).unwrap())
    });
    let sources: Vec<MemberSource<'_>> = members
        .iter()
        .zip([0, 0, 2])
        .map(|((config, tensors), backbone)| MemberSource { config, tensors, backbone })
        .collect();
    let aggregation = Aggregation { aggregate: Aggregate::Uwo, lambda: 0.5 };
    for precision in [Precision::F32, Precision::Bf16] {
        let load = |threads| {
            let ops = CpuOps::new(threads, precision).ok()?;
            Some(Ensemble::load(ops, &sources, aggregation).unwrap())
        };
        match load(1).zip(load(2)) {
            Some((one, two)) => {
                let trial = Trial {
                    folder: golden("ensemble"),
                    longest: 500,
                    compositions: 100,
                    progress: false,
                };
                trial.run(precision.name(), &members[0].0, [&one, &two]);
            }
            None => println!("skipped: this processor has no {}", precision.name()),
        }
    }
}

#[test]
fn smollm2_in_short() {
    let Some(folder) = smollm2() else { return };
    both_precisions(&Trial { folder, longest: 150, compositions: 4, progress: false });
}

#[test]
#[ignore = "takes minutes"]
fn smollm2_bf16() {
    let Some(folder) = smollm2() else { return };
    let trial = Trial { folder, longest: 1500, compositions: 200, progress: true };
    trial.run_on_cpu(Precision::Bf16);
}

#[test]
#[ignore = "takes minutes"]
fn smollm2_f32() {
    let Some(folder) = smollm2() else { return };
    let trial = Trial { folder, longest: 1500, compositions: 200, progress: true };
    trial.run_on_cpu(Precision::F32);
}

/// On a GPU, real or emulated (`tests/integration/cuda/scoring.rs`), whose two models cut products into other pieces. A real one is
/// quick: `CUDA_TRIAL` names its number of compositions, over texts of up to 1,500 tokens.
#[cfg(feature = "cuda")]
#[test]
fn on_a_gpu() {
    use inform::ops::cuda::CudaOps;

    let whole = std::env::var("CUDA_TRIAL").ok().map(|count| count.parse().unwrap());
    let (longest, compositions) = whole.map_or((500, 10), |count| (1500, count));
    let small: [&[usize]; 2] = [&[16, 64], &[64]];
    let pieces = if whole.is_some() { [&[128, 512, 2048][..], &[512]] } else { small };
    let tiny = [golden("tiny/linear"), golden("families/mistral")];
    for folder in tiny.into_iter().chain(whole.and(smollm2())) {
        let config = ModelConfig::read(&folder).unwrap();
        let tensors = FolderTensors::open(&folder).unwrap();
        let load = |pieces| {
            let ops = CudaOps::new(0, pieces)?;
            Ok(RewardModel::load(ops, &config, &tensors).unwrap())
        };
        match load(pieces[0]).and_then(|one| Ok((one, load(pieces[1])?))) {
            Ok((one, two)) => {
                let trial = Trial { folder, longest, compositions, progress: whole.is_some() };
                trial.run("GPU", &config, [&one, &two]);
            }
            Err(error) => {
                let error: inform::ops::cuda::CudaError = error;
                assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "{error}");
                println!("skipped: {error}");
            }
        }
    }
}

/// SmolLM2-135M with a fresh InfoRM head; `None` where it is not at hand.
fn smollm2() -> Option<PathBuf> {
    static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let folder = std::env::var_os("SMOLLM2_FOLDER")?;
        let with_head = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2-invariance");
        let head = HeadConfig::inform(128, DecodeKind::Linear);
        init_head(Path::new(&folder), &with_head, &head, 0).unwrap();
        Some(with_head)
    });
    if FOLDER.is_none() {
        println!("skipped: SMOLLM2_FOLDER does not name a folder of SmolLM2-135M-Instruct");
    }
    FOLDER.clone()
}

fn both_precisions(trial: &Trial) {
    for precision in [Precision::F32, Precision::Bf16] {
        trial.run_on_cpu(precision);
    }
}

struct Trial {
    folder: PathBuf,
    /// Tokens of the longest text.
    longest: usize,
    compositions: usize,
    /// Whether to print a line every ten compositions.
    progress: bool,
}

impl Trial {
    fn run_on_cpu(&self, precision: Precision) {
        let config = ModelConfig::read(&self.folder).unwrap();
        let tensors = FolderTensors::open(&self.folder).unwrap();
        let load = |threads| {
            let ops = CpuOps::new(threads, precision).ok()?;
            Some(RewardModel::load(ops, &config, &tensors).unwrap())
        };
        match load(1).zip(load(2)) {
            Some((one, two)) => self.run(precision.name(), &config, [&one, &two]),
            None => println!("skipped: this processor has no {}", precision.name()),
        }
    }

    /// The models have the same weights and must give the same bits.
    fn run(&self, device: &str, config: &ModelConfig, [one, two]: [&dyn Scorer; 2]) {
        let started = Instant::now();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let vocabulary = config.decoder.vocab_size as u32;
        let texts = texts(&mut random, vocabulary, self.longest);
        let alone: Vec<Vec<u32>> =
            texts.iter().map(|text| bits(&one.score(&[text]).unwrap()[0])).collect();

        let (mut numbers, mut batches, mut tokens, mut saved) = (0, 0, 0, 0);
        let mut differing = Vec::new();
        for composition in 1..=self.compositions {
            let chosen = subset(&mut random);
            let budget = log_uniform(&mut random, 512, 16_384);
            let (number, model) = *[(1, one), (2, two)].choose(&mut random).unwrap();
            let shared = random.random();
            for batch in cut(&chosen, &texts, budget) {
                let ids: Vec<&[u32]> = batch.iter().map(|&text| texts[text].as_slice()).collect();
                let packing = if shared { Packing::shared(&ids) } else { Packing::new(&ids) };
                let packing = packing.unwrap();
                let scores = model.score_packed(&packing).unwrap();
                assert_eq!(scores.len(), batch.len());
                batches += 1;
                let length = ids.iter().map(|ids| ids.len()).sum::<usize>();
                tokens += length;
                saved += length - packing.rows();
                for (score, &text) in scores.iter().zip(&batch) {
                    let found = bits(score);
                    assert_eq!(found.len(), alone[text].len());
                    numbers += found.len();
                    let count = found.iter().zip(&alone[text]).filter(|(a, b)| a != b).count();
                    if count > 0 {
                        differing.push(format!(
                            "composition {composition}: {count} of {} numbers of text {text} ({} \
                             tokens) in a batch of {} texts and {} rows, budget {budget}, model \
                             {number}, prefixes shared: {shared}",
                            found.len(),
                            texts[text].len(),
                            batch.len(),
                            packing.rows(),
                        ));
                    }
                }
            }
            if self.progress && composition % 10 == 0 {
                println!(
                    "{}: {composition} of {} compositions, {} scores differ, {:.0} s",
                    device,
                    self.compositions,
                    differing.len(),
                    started.elapsed().as_secs_f64()
                );
            }
        }
        let what = format!("{}, {device}", self.folder.display());
        assert!(
            differing.is_empty(),
            "{what}: {} scores differ from the text's own, first:\n{}",
            differing.len(),
            differing[..differing.len().min(10)].join("\n")
        );
        assert!(saved > tokens / 20, "{saved} of {tokens} tokens shared: too few to show anything");
        println!(
            "{what}: {} compositions, {batches} batches, {numbers} numbers, {saved} of {tokens} tokens \
             shared, 0 bits differ, {:.1} s",
            self.compositions,
            started.elapsed().as_secs_f64()
        );
    }
}

/// Texts of 1 to `longest` tokens. Most continue an earlier one from a random cut; two stand twice, one is
/// another and one token more, one is another without its last token.
fn texts(random: &mut ChaCha8Rng, vocabulary: u32, longest: usize) -> Vec<Vec<u32>> {
    let edges: Vec<usize> = EDGES.into_iter().filter(|&edge| edge <= longest).collect();
    let spread = TEXTS - 4 - edges.len();
    // More short texts than long ones, both ends of the range included.
    let share = |i: usize| (i as f64 / (spread - 1) as f64).powi(3);
    let mut lengths: Vec<usize> =
        (0..spread).map(|i| 1 + ((longest - 1) as f64 * share(i)).round() as usize).collect();
    lengths.extend(edges);
    lengths.shuffle(random);
    let mut texts: Vec<Vec<u32>> = Vec::with_capacity(TEXTS);
    for length in lengths {
        let longer = texts.choose_multiple(random, 4).max_by_key(|text| text.len());
        let mut text = match longer {
            Some(earlier) if random.random_bool(0.9) => {
                let most = earlier.len().min(length);
                let cut = random.random_range(0..=most).max(random.random_range(0..=most));
                earlier[..cut].to_vec()
            }
            _ => Vec::new(),
        };
        text.extend((text.len()..length).map(|_| random.random_range(0..vocabulary)));
        texts.push(text);
    }
    let inner: Vec<Vec<u32>> =
        texts.iter().filter(|text| (20..longest).contains(&text.len())).take(4).cloned().collect();
    let [twice, also_twice, longer, shorter] = inner.try_into().unwrap();
    texts.extend([twice, also_twice]);
    texts.push([longer.as_slice(), &[random.random_range(0..vocabulary)]].concat());
    texts.push(shorter[..shorter.len() - 1].to_vec());
    assert_eq!(texts.len(), TEXTS);
    assert!(texts.iter().any(|text| text.len() == 1));
    assert!(texts.iter().any(|text| text.len() == longest));
    texts
}

fn log_uniform(random: &mut ChaCha8Rng, low: usize, high: usize) -> usize {
    let (low, high) = (low as f64, high as f64);
    (low * (high / low).powf(random.random())).round() as usize
}

/// Some of the texts in random order: one, all, or a number between.
fn subset(random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..TEXTS).collect();
    order.shuffle(random);
    order.truncate(log_uniform(random, 1, TEXTS));
    order
}

/// Batches of as many texts as the budget holds; a longer text is a batch of its own.
fn cut(chosen: &[usize], texts: &[Vec<u32>], budget: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for &text in chosen {
        let length = texts[text].len();
        match batches.last_mut() {
            Some(batch) if tokens + length <= budget => {
                batch.push(text);
                tokens += length;
            }
            _ => {
                batches.push(vec![text]);
                tokens = length;
            }
        }
    }
    batches
}
