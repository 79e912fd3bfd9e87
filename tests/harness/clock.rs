//! A wall clock of its own for one process, which a test sets while it runs. The machine's is never touched.
//!
//! Programs do not ask the kernel for the time: they call a function that the kernel maps into each of them, the vDSO;
//! those in Go find it by themselves, so nothing that is preloaded reaches them. A process is stopped here before its
//! first instruction, and those functions are replaced in its memory by ones that make the system call and add a shift,
//! which lies beside them and can be written at any time. After that nobody watches the process. Its monotonic clock is
//! as ever: Linux lets nobody set that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use tokio::process::{Child, Command};

/// The clock of one process.
#[derive(Debug)]
pub struct Clock {
    memory: File,
    /// Where the shift is.
    shift_at: u64,
}

impl Clock {
    /// Starts a command with a clock that is so many seconds ahead of the machine's; negative: behind.
    ///
    /// # Errors
    /// If the command cannot be started, or its memory not be changed.
    pub fn spawn(command: &mut Command, seconds: i64) -> io::Result<(Child, Self)> {
        stop_at_start(command);
        let child = command.spawn()?;
        // Only this thread may let it go.
        let clock = Self::install(&child, seconds);
        Ok((child, clock?))
    }

    /// Starts a command; with a clock of its own if it is said what that shows.
    ///
    /// # Errors
    /// As for [`Self::spawn`].
    pub fn spawn_if(
        command: &mut Command,
        seconds: Option<i64>,
    ) -> io::Result<(Child, Option<Self>)> {
        let Some(seconds) = seconds else {
            return Ok((command.spawn()?, None));
        };
        let (child, clock) = Self::spawn(command, seconds)?;
        Ok((child, Some(clock)))
    }

    fn install(child: &Child, seconds: i64) -> io::Result<Self> {
        let ended = || io::Error::other("it has ended");
        let pid = i32::try_from(child.id().ok_or_else(ended)?).map_err(io::Error::other)?;
        let process = rustix::process::Pid::from_raw(pid).ok_or_else(ended)?;
        // It has been executed, and stops at once.
        rustix::process::waitpid(Some(process), rustix::process::WaitOptions::UNTRACED)?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let shift_at = replace(pid, &memory)?;
        let clock = Self { memory, shift_at };
        clock.set(seconds)?;
        let_go(pid)?;
        Ok(clock)
    }

    /// Makes it jump: from now on it is so many seconds ahead of the machine's.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        self.memory
            .write_all_at(&seconds.to_ne_bytes(), self.shift_at)
    }
}

/// Seconds since 1970, by the machine's clock.
pub fn machine_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("it is past 1970").as_secs()).expect("it is long until then")
}

/// Whether this can be done here. If not, it says so loudly; where all tests have to run, it panics.
pub fn can_be_set() -> bool {
    let tried = Clock::spawn(Command::new("true").kill_on_drop(true), 1);
    let failed = tried.err();
    if let Some(error) = &failed {
        super::servers::missing(&format!("clocks of processes cannot be set here ({error})"));
    }
    failed.is_none()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod vdso {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;
    use tokio::process::Command;

    const TRACE_ME: i32 = 0;
    const DETACH: i32 = 17;

    unsafe extern "C" {
        fn ptrace(request: i32, ...) -> i64;

        static clock_begin: u8;
        static clock_shift: u8;
        static clock_gettimeofday: u8;
        static clock_time: u8;
        static clock_end: u8;
    }

    // What takes the place of clock_gettime in the vDSO. The other two jump here.
    std::arch::global_asm!(
        ".balign 16",
        "clock_begin:",
        "jmp 2f",
        ".balign 8",
        "clock_shift: .quad 0",
        "2: mov eax, 228",
        "syscall",
        "test eax, eax",
        "jne 4f",
        // CLOCK_REALTIME, and the coarse one.
        "test edi, edi",
        "je 3f",
        "cmp edi, 5",
        "jne 4f",
        "3: mov rcx, [rip + clock_shift]",
        "add [rsi], rcx",
        "4: ret",
        "clock_gettimeofday:",
        "mov eax, 96",
        "syscall",
        "test eax, eax",
        "jne 5f",
        "test rdi, rdi",
        "je 5f",
        "mov rcx, [rip + clock_shift]",
        "add [rdi], rcx",
        "5: ret",
        "clock_time:",
        "mov eax, 201",
        "syscall",
        "add rax, [rip + clock_shift]",
        "test rdi, rdi",
        "je 6f",
        "mov [rdi], rax",
        "6: ret",
        "clock_end:",
    );

    /// Has the command stop before its first instruction, for the thread that starts it.
    pub(super) fn stop_at_start(command: &mut Command) {
        let trace_me = || {
            // SAFETY: it takes no other argument, and touches no memory.
            match unsafe { ptrace(TRACE_ME) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec it makes one system call, and allocates nothing.
        unsafe { command.pre_exec(trace_me) };
    }

    pub(super) fn let_go(pid: i32) -> io::Result<()> {
        // SAFETY: it touches no memory of this process.
        match unsafe { ptrace(DETACH, pid, 0_usize, 0_usize) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Replaces the functions that tell the time, and returns where the shift is.
    pub(super) fn replace(pid: i32, memory: &File) -> io::Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let (begin, end) = mapped(&maps).ok_or_else(|| io::Error::other("it has no vDSO"))?;
        let length = usize::try_from(end - begin).map_err(io::Error::other)?;
        let mut image = vec![0; length];
        memory.read_exact_at(&mut image, begin)?;
        let find = |name: &str| {
            let missing = || io::Error::other(format!("its vDSO has no {name}"));
            symbol(&image, name).ok_or_else(missing)
        };
        let at = [
            find("__vdso_clock_gettime")?,
            find("__vdso_gettimeofday")?,
            find("__vdso_time")?,
        ];
        let code = Code::get();
        if at[0] % 8 != 0 {
            return Err(io::Error::other("its vDSO is not aligned"));
        }
        memory.write_all_at(code.bytes, begin + at[0])?;
        for (from, to) in [(at[1], code.gettimeofday), (at[2], code.time)] {
            // jmp, relative to what is behind it.
            let way = (at[0] + to).wrapping_sub(from + 5);
            let way = u32::try_from(way & 0xffff_ffff).map_err(io::Error::other)?;
            memory.write_all_at(&[0xe9], begin + from)?;
            memory.write_all_at(&way.to_le_bytes(), begin + from + 1)?;
        }
        Ok(begin + at[0] + code.shift)
    }

    /// The code above, and what is where in it.
    struct Code {
        bytes: &'static [u8],
        shift: u64,
        gettimeofday: u64,
        time: u64,
    }

    impl Code {
        fn get() -> Self {
            let begin = &raw const clock_begin;
            let from_begin = |to: *const u8| to.addr() - begin.addr();
            let length = from_begin(&raw const clock_end);
            // SAFETY: the labels are in this order in one section, and nobody writes there.
            let bytes = unsafe { std::slice::from_raw_parts(begin, length) };
            Self {
                bytes,
                shift: from_begin(&raw const clock_shift) as u64,
                gettimeofday: from_begin(&raw const clock_gettimeofday) as u64,
                time: from_begin(&raw const clock_time) as u64,
            }
        }
    }

    fn mapped(maps: &str) -> Option<(u64, u64)> {
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (begin, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(begin)?, number(end)?))
    }

    /// Where a symbol of an ELF image is in it.
    fn symbol(image: &[u8], name: &str) -> Option<u64> {
        let number = |at: u64, bytes: usize| {
            let at = usize::try_from(at).ok()?;
            let mut wide = [0; 8];
            wide[..bytes].copy_from_slice(image.get(at..at + bytes)?);
            Some(u64::from_le_bytes(wide))
        };
        let (segments, count) = (number(0x20, 8)?, number(0x38, 2)?);
        let dynamic = (0..count)
            .map(|index| segments + index * 0x38)
            .find(|at| number(*at, 4) == Some(2))?;
        let dynamic = number(dynamic + 0x10, 8)?;
        let tagged = |tag| {
            let mut rows = (0..64).map(|index| dynamic + index * 16);
            number(rows.find(|at| number(*at, 8) == Some(tag))? + 8, 8)
        };
        let (names, symbols) = (tagged(5)?, tagged(6)?);
        // Names are behind symbols, with nothing in between.
        (symbols..names).step_by(24).find_map(|at| {
            let begin = usize::try_from(names + number(at, 4)?).ok()?;
            let found = image.get(begin..)?.split(|byte| *byte == 0).next()?;
            (found == name.as_bytes()).then(|| number(at + 8, 8))?
        })
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod vdso {
    use std::{fs::File, io};
    use tokio::process::Command;

    pub(super) fn stop_at_start(command: &mut Command) {
        let never = || Err(io::ErrorKind::Unsupported.into());
        // SAFETY: it does nothing at all.
        unsafe { command.pre_exec(never) };
    }

    pub(super) fn let_go(_pid: i32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn replace(_pid: i32, _memory: &File) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

use vdso::{let_go, replace, stop_at_start};
