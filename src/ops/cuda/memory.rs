//! Memory of a device that is kept between batches, and copies to and from it.
//!
//! All work is on one stream, so memory may be given to the next operation as soon as the one before is queued.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result};
use parking_lot::Mutex;

use super::error::CudaError;

/// Page-locked host memory that the uploads of one batch go through.
const STAGING_BYTES: usize = 4 << 20;
/// Every address is a multiple of this.
const ALIGNMENT: usize = 256;

/// The memory of one device.
pub(super) struct Memory {
    stream: Arc<CudaStream>,
    free: Mutex<Vec<CudaSlice<u8>>>,
    staging: Mutex<Staging>,
}

struct Staging {
    host: PinnedHostSlice<u8>,
    /// Bytes that copies may still read.
    used: usize,
}

/// Elements on the device, uninitialised unless somebody wrote them. Given back to the device's memory when dropped.
pub struct DeviceBuffer<T> {
    memory: Arc<Memory>,
    bytes: Option<CudaSlice<u8>>,
    address: u64,
    elements: PhantomData<T>,
}

impl<T> DeviceBuffer<T> {
    /// Address of the first element.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl<T> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer at {:#x}", self.address)
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        self.memory.free.lock().extend(self.bytes.take());
    }
}

impl Memory {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self, CudaError> {
        // SAFETY: it is written before it is read.
        let host = unsafe { stream.context().alloc_pinned(STAGING_BYTES) }
            .map_err(CudaError::driver("page-locked memory"))?;
        Ok(Self { stream, free: Mutex::default(), staging: Mutex::new(Staging { host, used: 0 }) })
    }

    /// Room for `count` elements.
    pub(super) fn take<T>(self: &Arc<Self>, count: usize) -> Result<DeviceBuffer<T>, CudaError> {
        let wanted = (count * size_of::<T>()).max(1).next_multiple_of(ALIGNMENT);
        let bytes = match self.kept(wanted) {
            Some(bytes) => bytes,
            None => self.allocate(wanted)?,
        };
        let address = bytes.device_ptr(&self.stream).0;
        Ok(DeviceBuffer {
            memory: self.clone(),
            bytes: Some(bytes),
            address,
            elements: PhantomData,
        })
    }

    /// The smallest that fits, unless most of it would lie idle.
    fn kept(&self, wanted: usize) -> Option<CudaSlice<u8>> {
        let mut free = self.free.lock();
        let fitting = free.iter().enumerate().filter(|(_, bytes)| bytes.len() >= wanted);
        let (index, best) = fitting.min_by_key(|(_, bytes)| bytes.len())?;
        (best.len() <= 2 * wanted).then_some(index).map(|index| free.swap_remove(index))
    }

    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>, CudaError> {
        // SAFETY: operations write what they hand on.
        let allocate = || unsafe { self.stream.alloc(bytes) };
        allocate()
            .or_else(|_| {
                self.release();
                allocate()
            })
            .map_err(|answer| CudaError::OutOfMemory { bytes, answer })
    }

    /// Gives what is kept back to the driver.
    pub(super) fn release(&self) {
        self.free.lock().clear();
        let _ = self.stream.synchronize();
    }

    /// Copies elements to the device.
    pub(super) fn upload<T: DeviceRepr>(
        self: &Arc<Self>,
        values: &[T],
    ) -> Result<DeviceBuffer<T>, CudaError> {
        let buffer = self.take(values.len())?;
        self.write(buffer.address, values)?;
        Ok(buffer)
    }

    /// Copies elements to an address that has room for them.
    pub(super) fn write<T: DeviceRepr>(&self, address: u64, values: &[T]) -> Result<(), CudaError> {
        let failed = "copy to the GPU";
        self.stream.context().bind_to_thread().map_err(CudaError::driver(failed))?;
        // SAFETY: plain numbers are bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
        };
        let mut staging = self.staging.lock();
        let start = staging.used;
        let staged = staging
            .host
            .as_mut_slice()
            .ok()
            .and_then(|host| host.get_mut(start..start + bytes.len()));
        let copied = match staged {
            Some(staged) => {
                staged.copy_from_slice(bytes);
                // SAFETY: the staged bytes stay as they are until the stream was waited for.
                let copied =
                    unsafe { result::memcpy_htod_async(address, staged, self.stream.cu_stream()) };
                staging.used += bytes.len();
                copied
            }
            // SAFETY: memory that is not page-locked was read when the call returns.
            None => unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) },
        };
        copied.map_err(CudaError::driver(failed))
    }

    /// Fills elements with zeros.
    pub(super) fn clear<T>(&self, buffer: &DeviceBuffer<T>, count: usize) -> Result<(), CudaError> {
        let failed = "clearing memory of the GPU";
        self.stream.context().bind_to_thread().map_err(CudaError::driver(failed))?;
        let bytes = count * size_of::<T>();
        // SAFETY: the buffer has that many bytes, and zeros are numbers.
        unsafe { result::memset_d8_async(buffer.address, 0, bytes, self.stream.cu_stream()) }
            .map_err(CudaError::driver(failed))
    }

    /// Copies elements on the device.
    pub(super) fn copy<T>(
        &self,
        to: &DeviceBuffer<T>,
        from: &DeviceBuffer<T>,
        count: usize,
    ) -> Result<(), CudaError> {
        let failed = "a copy on the GPU";
        self.stream.context().bind_to_thread().map_err(CudaError::driver(failed))?;
        let (bytes, stream) = (count * size_of::<T>(), self.stream.cu_stream());
        // SAFETY: both have that many bytes.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, stream) }
            .map_err(CudaError::driver(failed))
    }

    /// Waits for all work, and copies the first `count` elements to the host.
    pub(super) fn read<T: DeviceRepr + Clone + Default>(
        &self,
        buffer: &DeviceBuffer<T>,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let failed = "a batch on the GPU";
        let stream = &self.stream;
        stream.context().bind_to_thread().map_err(CudaError::driver(failed))?;
        let mut values = vec![T::default(); count];
        // SAFETY: `values` lives until the stream was waited for.
        unsafe { result::memcpy_dtoh_async(&mut values, buffer.address, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(CudaError::driver(failed))?;
        self.staging.lock().used = 0;
        Ok(values)
    }
}
