# Finds the CUDA toolkit of this machine, or that of `.ci/install cuda`; false where there is none. To be sourced.
# The toolkit's libraries would hide the emulated device: $toolkit_libraries names them, LD_LIBRARY_PATH does not.
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/none}/bin/nvcc" ] && [ -f target/cuda/env.sh ]; then
  source target/cuda/env.sh
fi
toolkit_libraries=${LD_LIBRARY_PATH:-}
unset LD_LIBRARY_PATH
command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/none}/bin/nvcc" ] || {
  echo "SKIPPED: no CUDA toolkit is here, and none could be installed"
  false
}
