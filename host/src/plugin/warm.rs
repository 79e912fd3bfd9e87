//! Workers that hold an instance before a version is active, and let go of it after.

use super::deploy::Shared;
use super::report::DeployError;
use super::{Crew, Generation, GenerationId};
use std::sync::{Arc, PoisonError};

impl Shared {
    /// Makes every worker hold an instance. They let go of it when what is returned is dropped without
    /// [`Warmed::keep`].
    pub(super) async fn warm(&self, generation: &Arc<Generation>) -> Result<Warmed, DeployError> {
        let crew = self.crew();
        let warmed = Warmed {
            crew: crew.clone(),
            generation: generation.id(),
        };
        if let Some(crew) = crew {
            crew.warm(Arc::clone(generation))
                .await
                .map_err(DeployError::Warm)?;
        }
        Ok(warmed)
    }

    /// Lets the workers drop their instances of generations.
    pub(super) fn retire<'a>(&self, old: impl IntoIterator<Item = &'a GenerationId>) {
        if let Some(crew) = self.crew() {
            old.into_iter().for_each(|old| crew.retire(*old));
        }
    }

    pub(super) fn crew(&self) -> Option<Arc<dyn Crew>> {
        self.crew
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Warm instances that are of no use until their generation is published.
pub(super) struct Warmed {
    crew: Option<Arc<dyn Crew>>,
    generation: GenerationId,
}

impl Warmed {
    /// The generation is active: they stay.
    pub(super) fn keep(mut self) {
        self.crew = None;
    }
}

impl Drop for Warmed {
    fn drop(&mut self) {
        if let Some(crew) = &self.crew {
            crew.retire(self.generation);
        }
    }
}
