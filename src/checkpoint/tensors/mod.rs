//! Tensors by name: in memory-mapped files, or made in memory.

mod folder;
mod memory;
mod tensor_source;
mod values;
mod weight_type;

pub use folder::FolderTensors;
pub(in crate::checkpoint) use folder::shards;
pub use memory::MemoryTensors;
pub use tensor_source::TensorSource;
pub use values::TensorValues;
pub use weight_type::WeightType;
