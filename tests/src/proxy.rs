//! A TCP proxy that can be slow, half-open, or cut: what a network does to a connection without
//! notifying either end.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What happens to incoming bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// So much later.
    After(Duration),
    /// Not at all, though connections stay open: half-open ones, to the peer that sends.
    Silent,
}

#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    mode: Mode,
    open: Vec<TcpStream>,
}

impl Proxy {
    /// A proxy on 127.0.0.1 before `target`, until the process ends.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn before(target: &str, mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let proxy = Self { address, inner: Arc::new(Mutex::new(Inner { mode, open: Vec::new() })) };
        let (own, target) = (proxy.clone(), target.to_owned());
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&target) else { continue };
                own.join(&near, &far);
                own.join(&far, &near);
            }
        });
        proxy
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn set(&self, mode: Mode) {
        self.lock().mode = mode;
    }

    /// Closes all connections; new ones are taken.
    pub fn cut(&self) {
        for stream in self.lock().open.drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes on what `from` says.
    fn join(&self, from: &TcpStream, to: &TcpStream) {
        let (mut from, mut to) =
            (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
        _ = to.set_nodelay(true);
        self.lock().open.push(from.try_clone().expect("a descriptor"));
        let proxy = self.clone();
        thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            loop {
                let read = from.read(&mut bytes).unwrap_or(0);
                let mode = proxy.lock().mode;
                if let Mode::After(delay) = mode {
                    thread::sleep(delay);
                }
                // Whatever was said into the silence is lost.
                if read == 0 || mode != Mode::Silent && to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            _ = to.shutdown(Shutdown::Both);
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
