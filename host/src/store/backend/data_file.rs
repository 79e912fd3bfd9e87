//! What the writer asks of the one backend that has a file.

use std::time::Instant;

use super::Backends;
use crate::store::data_file::{Compacted, FileError, Source, SyncPolicy};

impl Backends {
    /// The same, with a file that is synced so; before it is opened.
    pub(in crate::store) fn syncing(self, sync: SyncPolicy) -> Self {
        Self { sync, ..self }
    }

    /// When [`Self::sync`] is due.
    pub(in crate::store) fn sync_by(&self) -> Option<Instant> {
        self.embedded.as_ref()?.sync_by()
    }

    /// Makes durable what is not yet.
    pub(in crate::store) fn sync(&mut self) -> Result<(), String> {
        match &mut self.embedded {
            Some(embedded) => embedded.sync(),
            None => Ok(()),
        }
    }

    pub(in crate::store) fn compact(&mut self) -> Result<Compacted, FileError> {
        self.embedded.as_mut().ok_or(FileError::None)?.compact()
    }

    pub(in crate::store) fn source(&mut self) -> Result<Source, FileError> {
        self.embedded.as_mut().ok_or(FileError::None)?.source()
    }
}
