//! What happens to records after the handshake, without a socket: content, alerts, key updates, session tickets.

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, SupportedCipherSuite};

use super::keys::{Fault, Keys, content};
use super::outbox::{Flight, Outbox};
use crate::pool::Buffer;

/// Key updates without content between them.
const UPDATES: u8 = 32;
/// Warnings that mean nothing.
const WARNINGS: u8 = 4;
/// The longest handshake message that is put together.
const MOST_MESSAGE: usize = 0xffff;
/// Records that a key keeps for the end: a key update, an alert, a close.
const RESERVE: u64 = 8;

const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;

/// What the TLS library keeps of a connection: it derives keys, and stores tickets.
pub enum Kernel {
    /// Of the side that was connected to.
    Server(KernelConnection<ServerConnectionData>),
    /// Of the side that connected.
    Client(KernelConnection<ClientConnectionData>),
}

type Secrets = (u64, ConnectionTrafficSecrets);

impl Kernel {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
        }
    }

    fn update_tx(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Server(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
        }
    }

    fn update_rx(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Server(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
        }
    }
}

/// What a record held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Content, so many bytes of it at the front of what was given.
    Content(usize),
    /// Something else, which is dealt with.
    Nothing,
    /// close_notify: nothing more comes.
    Closed,
}

/// A connection's keys in both directions.
pub struct Session {
    tx: Keys,
    rx: Keys,
    kernel: Kernel,
    /// The beginning of a handshake message.
    message: Vec<u8>,
    updates: u8,
    warnings: u8,
    renegotiations: u8,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Goes on where the handshake ended.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a suite that is not known here.
    pub fn new(secrets: ExtractedSecrets, kernel: Kernel) -> Result<Self, Fault> {
        let suite = kernel.suite();
        Ok(Self {
            tx: Keys::new(suite, secrets.tx)?,
            rx: Keys::new(suite, secrets.rx)?,
            kernel,
            message: Vec::new(),
            updates: UPDATES,
            warnings: WARNINGS,
            renegotiations: 1,
        })
    }

    /// The length of the record that `bytes` begins with; `None` = more bytes are needed to know.
    ///
    /// # Errors
    /// [`Fault`]: it is none.
    pub fn length(&self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        self.rx.length(bytes)
    }

    /// Opens the record `bytes[record..]`. Content comes to the front of `bytes`.
    ///
    /// # Errors
    /// [`Fault`], for which an alert is in `out`.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        record: usize,
        out: &mut Outbox,
    ) -> Result<Received, Fault> {
        let (kind, length) = self.rx.open(bytes, record)?;
        let plain = &bytes[..length];
        //= rfc8446 §5.1 no-interleaving
        if kind != content::HANDSHAKE && !self.message.is_empty() {
            return Err(Fault::Unexpected);
        }
        match kind {
            content::DATA => {
                if length > 0 {
                    self.updates = UPDATES;
                }
                Ok(Received::Content(length))
            }
            content::ALERT => self.alert(plain),
            content::HANDSHAKE => self.handshake(plain, out),
            //= rfc8446 §5 unknown-type
            _ => Err(Fault::Unexpected),
        }
    }

    fn alert(&mut self, plain: &[u8]) -> Result<Received, Fault> {
        let &[level, description] = plain else {
            return Err(Fault::Decode);
        };
        //= rfc8446 §6.1 close-notify-ends
        if description == CLOSE_NOTIFY {
            return Ok(Received::Closed);
        }
        let harmless = match self.rx.is_tls13() {
            true => description == USER_CANCELED,
            false => level == WARNING,
        };
        //= rfc8446 §6.2 error-alert-ends
        if !harmless || self.warnings == 0 {
            return Err(Fault::Illegal);
        }
        self.warnings -= 1;
        Ok(Received::Nothing)
    }

    fn handshake(&mut self, plain: &[u8], out: &mut Outbox) -> Result<Received, Fault> {
        //= rfc8446 §5.1 no-empty-handshake
        if plain.is_empty() {
            return Err(Fault::Unexpected);
        }
        if !self.rx.is_tls13() {
            return self.renegotiation(out);
        }
        let mut messages = std::mem::take(&mut self.message);
        messages.extend_from_slice(plain);
        let mut rest = &messages[..];
        while let Some(&[kind, a, b, c]) = rest.first_chunk::<4>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MOST_MESSAGE {
                return Err(Fault::Decode);
            }
            let Some(body) = rest.get(4..4 + length) else {
                break;
            };
            rest = &rest[4 + length..];
            match (kind, &mut self.kernel) {
                //= rfc8446 §5.1 key-change-aligned
                (KEY_UPDATE, _) if rest.is_empty() => self.key_update(body, out)?,
                (NEW_SESSION_TICKET, Kernel::Client(kernel)) => kernel
                    .handle_new_session_ticket(body)
                    .map_err(|_| Fault::Decode)?,
                _ => return Err(Fault::Unexpected),
            }
        }
        self.message = rest.to_vec();
        Ok(Received::Nothing)
    }

    //= rfc8446 §4.6.3 receive-with-next-keys
    fn key_update(&mut self, body: &[u8], out: &mut Outbox) -> Result<(), Fault> {
        self.updates = self.updates.checked_sub(1).ok_or(Fault::Unexpected)?;
        let suite = self.kernel.suite();
        let secrets = self.kernel.update_rx().map_err(|_| Fault::Internal)?;
        match body {
            [0] => {}
            // One answer is enough for all requests that came before it.
            //= rfc8446 §4.6.3 answer-request
            [1] if !out.has_control() => self.refresh(out)?,
            [1] => {}
            _ => return Err(Fault::Illegal),
        }
        self.rx = Keys::new(suite, secrets)?;
        Ok(())
    }

    /// Changes the key of what is sent.
    fn refresh(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        let suite = self.kernel.suite();
        out.seal(&mut self.tx, content::DATA)?;
        out.control(&mut self.tx, content::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        let secrets = self.kernel.update_tx().map_err(|_| Fault::Internal)?;
        self.tx = Keys::new(suite, secrets)?;
        Ok(())
    }

    /// TLS 1.2: is declined once, then no more.
    fn renegotiation(&mut self, out: &mut Outbox) -> Result<Received, Fault> {
        self.renegotiations = self
            .renegotiations
            .checked_sub(1)
            .ok_or(Fault::Unexpected)?;
        out.seal(&mut self.tx, content::DATA)?;
        out.control(&mut self.tx, content::ALERT, &[WARNING, NO_RENEGOTIATION])?;
        Ok(Received::Nothing)
    }

    /// Changes the key if it is nearly used up.
    ///
    /// # Errors
    /// [`Fault::UsedUp`] where keys cannot be changed (TLS 1.2).
    //= rfc8446 §5.5 key-limit
    fn fresh(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        match self.tx.left() {
            ..=RESERVE if self.tx.is_tls13() => self.refresh(out),
            ..=RESERVE => Err(Fault::UsedUp),
            _ => Ok(()),
        }
    }

    /// Gathers content to be sent; returns how many bytes there was room for.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn push(&mut self, bytes: &[u8], out: &mut Outbox) -> Result<usize, Fault> {
        self.fresh(out)?;
        out.push(&mut self.tx, content::DATA, bytes)
    }

    /// Ends the record that content is gathered in.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn seal(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        out.seal(&mut self.tx, content::DATA)
    }

    /// Makes ready for [`take_off`](Self::take_off): what this leaves in `out` is to be written before.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn clear(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        self.fresh(out)?;
        self.seal(out)
    }

    /// Seals `buffer[start..end]` where it lies.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn take_off(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<Flight, Fault> {
        Flight::seal(&mut self.tx, content::DATA, buffer, start, end)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    //= rfc8446 §6.1 close-notify-sent
    pub fn close(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        self.seal(out)?;
        out.control(&mut self.tx, content::ALERT, &[WARNING, CLOSE_NOTIFY])
    }

    /// Tells the peer what it did wrong.
    //= rfc8446 §6.2 fatal-alert
    pub fn reproach(&mut self, fault: Fault, out: &mut Outbox) {
        let description = match fault {
            Fault::Unexpected => 10,
            Fault::BadRecordMac => 20,
            Fault::RecordOverflow => 22,
            Fault::Illegal => 47,
            Fault::Decode => 50,
            Fault::UsedUp | Fault::Internal => 80,
        };
        if self.seal(out).is_ok() {
            let _ = out.control(&mut self.tx, content::ALERT, &[FATAL, description]);
        }
    }

    /// Leaves of the key what is kept for the end.
    #[cfg(test)]
    pub fn wear_out(&mut self) {
        self.tx.wear_out(RESERVE);
    }

    /// Sends a record as it is, whatever it is.
    #[doc(hidden)]
    pub fn say(&mut self, kind: u8, bytes: &[u8], out: &mut Outbox) -> Result<(), Fault> {
        out.control(&mut self.tx, kind, bytes)
    }
}
