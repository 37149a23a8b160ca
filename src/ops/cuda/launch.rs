//! How kernels are queued.

/// Queues a kernel; a macro since every argument is a place in memory.
macro_rules! launch {
    ($ops:expr, $kernel:expr, ($x:expr, $y:expr), $shared:expr, [$($argument:expr),* $(,)?]) => {{
        let config = cudarc::driver::LaunchConfig {
            grid_dim: ($x as u32, $y as u32, 1),
            block_dim: ($crate::ops::cuda::kernels::THREADS, 1, 1),
            shared_mem_bytes: $shared as u32,
        };
        let kernel: &cudarc::driver::CudaFunction = $kernel;
        use cudarc::driver::PushKernelArg as _;
        // SAFETY: the arguments are those of the kernel's declaration, and every address holds what the head of its
        // file asks for.
        unsafe { $ops.stream.launch_builder(kernel)$(.arg(&$argument))*.launch(config) }
            .map(drop)
            .map_err($crate::ops::cuda::error::CudaError::driver("launching a kernel"))
    }};
}

pub(super) use launch;
