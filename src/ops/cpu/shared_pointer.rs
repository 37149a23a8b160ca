//! Pointers that tasks share because each writes its own part.

/// A pointer to the first of some elements.
#[derive(Debug)]
pub(super) struct SharedPointer<T>(*mut T);
// SAFETY: the users of `SharedPointer` write disjoint elements.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> Clone for SharedPointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    pub(super) fn new(elements: &mut [T]) -> Self {
        Self(elements.as_mut_ptr())
    }

    /// The same memory as elements of another type.
    pub(super) fn cast<U>(self) -> SharedPointer<U> {
        SharedPointer(self.0.cast())
    }

    /// The pointer, moved `offset` elements.
    ///
    /// # Safety
    /// As `pointer::add`.
    pub(super) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}
