//! Buffers that are kept between batches.
//!
//! A fresh allocation of some megabytes costs page faults and zeroing, as much time as the arithmetic on it.
//! Every thread keeps the buffers that it dropped, and takes the smallest that is large enough.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Buffers that a thread keeps of each type.
const KEPT: usize = 24;

type Shelf<T> = RefCell<Vec<Vec<T>>>;

/// An element type that buffers are kept of.
pub(super) trait Element: Copy + Default + 'static {
    fn shelf() -> &'static LocalKey<Shelf<Self>>;
}

macro_rules! kept {
    ($($element:ty),*) => {
        $(impl Element for $element {
            fn shelf() -> &'static LocalKey<Shelf<Self>> {
                thread_local!(static SHELF: Shelf<$element> = const { RefCell::new(Vec::new()) });
                &SHELF
            }
        })*
    };
}
kept!(f32, u16, u32);

/// A slice whose memory goes back to its thread's shelf when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer<T: Element> {
    /// At least `length` elements.
    memory: Vec<T>,
    length: usize,
}

impl<T: Element> Buffer<T> {
    /// A buffer with arbitrary contents, for an operation that writes every element.
    pub(super) fn stale(length: usize) -> Self {
        let found = T::shelf().try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            let fitting = (0..shelf.len()).filter(|&i| shelf[i].len() >= length);
            let best = fitting.min_by_key(|&i| shelf[i].len());
            // A buffer that became too small would stay for ever beside its larger successor.
            let superseded = || (0..shelf.len()).max_by_key(|&i| shelf[i].len());
            match best {
                Some(index) => Some(shelf.swap_remove(index)),
                None => {
                    superseded().map(|index| shelf.swap_remove(index));
                    None
                }
            }
        });
        // Batches differ a little in size: room for the next ones that are larger.
        let room = || length.next_multiple_of((length.next_power_of_two() / 16).max(1));
        let memory = found.ok().flatten().unwrap_or_else(|| vec![T::default(); room()]);
        Self { memory, length }
    }
}

impl<T: Element> From<Vec<T>> for Buffer<T> {
    fn from(memory: Vec<T>) -> Self {
        Self { length: memory.len(), memory }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.is_empty() {
            return;
        }
        // A thread that is ending keeps nothing.
        let _ = T::shelf().try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            if shelf.len() < KEPT {
                return shelf.push(memory);
            }
            // The large ones are worth keeping.
            if let Some(smallest) = shelf.iter_mut().min_by_key(|kept| kept.len())
                && smallest.len() < memory.len()
            {
                *smallest = memory;
            }
        });
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[..self.length]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[..self.length]
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::stale(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Element + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
