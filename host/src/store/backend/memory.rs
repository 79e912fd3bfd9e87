//! The backend that keeps nothing: the snapshot is all there is.

use super::{Backend, Change, Loaded, WriteError};
use crate::store::table::Table;
use crate::store::{BucketConfig, OpenError, Revision};

/// Buckets that are empty at every start.
pub(super) struct Memory;

impl Backend for Memory {
    fn revision(&self) -> Revision {
        Revision::default()
    }

    fn load(&mut self, _bucket: &BucketConfig) -> Result<Loaded, OpenError> {
        Ok(Loaded {
            table: Table::new(),
            revision: Revision::default(),
        })
    }

    fn write(&mut self, _revision: Revision, _changes: &[Change]) -> Result<(), WriteError> {
        Ok(())
    }
}
