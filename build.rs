//! With the feature `cuda`: compiles `kernels/*.cu` to PTX and lists them for `src/ops/cuda/kernels.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// The driver compiles PTX for the card at hand: the newest of these that is not newer than the card.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(message) = compile()
    {
        println!("cargo:warning={message}");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let nvcc = nvcc()?;
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .map_err(|error| format!("kernels: {error}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let jobs: Vec<(&Path, u32, PathBuf)> = sources
        .iter()
        .flat_map(|source| ARCHITECTURES.map(|architecture| (source.as_path(), architecture)))
        .map(|(source, architecture)| (source, architecture, ptx(&out, source, architecture)))
        .collect();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let own = jobs.iter().skip(worker).step_by(workers);
                let nvcc = &nvcc;
                scope.spawn(move || own.map(|job| run(nvcc, job)).collect::<Vec<_>>())
            })
            .collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap_or_default()).collect()
    });
    results.into_iter().collect::<Result<(), String>>()?;

    let mut list = String::from("&[");
    for (source, architecture, ptx) in &jobs {
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let _ = write!(list, "({name:?}, {architecture}, include_str!({ptx:?})),");
    }
    list.push(']');
    fs::write(out.join("ptx.rs"), list).map_err(|error| format!("ptx.rs: {error}"))
}

fn ptx(out: &Path, source: &Path, architecture: u32) -> PathBuf {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    out.join(format!("{name}.sm_{architecture}.ptx"))
}

/// The compiler: `NVCC`, or in `CUDA_HOME` or `CUDA_PATH`, or in PATH.
fn nvcc() -> Result<PathBuf, String> {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let in_homes = homes.map(|home| Path::new(&home).join("bin/nvcc"));
    let in_path: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).map(|folder| folder.join("nvcc")).collect())
        .unwrap_or_default();
    named.into_iter().chain(in_homes).chain(in_path).find(|path| path.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc 13 (NVCC, CUDA_HOME/bin or PATH): install the CUDA toolkit, or build \
         without the feature for the CPU"
            .to_owned()
    })
}

fn run(nvcc: &Path, (source, architecture, ptx): &(&Path, u32, PathBuf)) -> Result<(), String> {
    let done = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "--ptx", "-Ikernels"])
        .arg(format!("-arch=compute_{architecture}"))
        .arg("-o")
        .args([ptx.as_path(), source])
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).replace('\n', " | ");
    Err(format!("nvcc failed on {}: {said}", source.display()))
}
