//! Signals: SIGTERM and SIGINT end the process, SIGHUP has it read its config again.

use super::App;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// The signals that end a process or have it read its config again.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// A SIGHUP while the proxy starts: it does not end the process, and the config is read again once it serves.
pub struct Hangup {
    runtime: tokio::runtime::Runtime,
    signal: Signal,
}

impl Hangup {
    /// From now on no SIGHUP ends the process.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn hold() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signal = {
            let _entered = runtime.enter();
            signal(SignalKind::hangup())?
        };
        Ok(Self { runtime, signal })
    }

    /// Whether one has come.
    fn came(mut self) -> bool {
        let come = async {
            let none = Duration::from_millis(1);
            tokio::time::timeout(none, self.signal.recv()).await.is_ok()
        };
        self.runtime.block_on(come)
    }
}

impl App {
    /// Listens for signals: from now on none of them ends the process by itself. To be called before anybody is told that it
    /// serves, for who is told may send one at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn signals(&self) -> anyhow::Result<Signals> {
        let _entered = self.handle.enter();
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second one forces. SIGHUP reads the config again.
    pub fn run_until_signal(self, signals: Signals, early: Hangup) {
        let control = self.control.clone();
        let came_early = early.came();
        let Signals {
            mut term,
            mut int,
            mut hup,
        } = signals;
        let reloads = self.control.clone();
        let (serving, mut over) = oneshot::channel::<()>();
        // Apart from the signals that end the process: a reload may compile or wait for an engine.
        self.handle.spawn(async move {
            if came_early {
                reloads.reload().await;
            }
            loop {
                tokio::select! {
                    _ = &mut over => break,
                    _ = hup.recv() => {}
                }
                reloads.reload().await;
            }
        });
        let grace = self.handle.clone().block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            drop(serving);
            let grace = control.running().config.streams.shutdown_grace;
            tracing::info!(?grace, "draining; a second signal stops at once");
            self.handle.spawn(async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                tracing::warn!("stopped at once");
                std::process::exit(1);
            });
            grace
        });
        self.stop(grace);
    }
}
