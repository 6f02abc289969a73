//! Records on their way out: small writes are gathered into full records, whole buffers are sealed where they lie.

use std::io::{self, ErrorKind, IoSlice};
use std::task::{Context, Poll, ready};

use super::keys::{Edge, Fault, Keys, MOST_CONTENT};
use crate::pool::{Buffer, PAYLOAD, SIZE};
use crate::transport::wire::Wire;

/// Room that data leaves free for what the protocol itself has to say: an alert, a close, two key updates.
const CONTROL: usize = 128;
/// A record is not begun for less.
const WORTH_BEGINNING: usize = 1024;
/// The most records of one buffer: what is in the headroom may make one more.
const RECORDS: usize = PAYLOAD / MOST_CONTENT + 1;

/// What was sealed, or gathered to be sealed, and is not written yet.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Goes first.
    flight: Option<Box<Flight>>,
    staging: Option<Staging>,
}

/// `written..sealed` are records; content of one that is still open is behind them.
#[derive(Debug)]
struct Staging {
    buffer: Buffer,
    written: usize,
    sealed: usize,
    open: usize,
    /// Something that the protocol itself has to say is among them.
    control: bool,
}

/// A buffer whose content was sealed in place: records are its pieces with edges around them.
#[derive(Debug)]
pub struct Flight {
    buffer: Buffer,
    start: usize,
    end: usize,
    edges: [Edge; RECORDS + 1],
    /// Of edges and pieces together, in bytes.
    written: usize,
}

impl Flight {
    /// Seals `buffer[start..end]`.
    ///
    /// # Errors
    /// [`Fault::UsedUp`], [`Fault::Internal`]; nothing of the buffer may be sent then.
    pub fn seal(
        keys: &mut Keys,
        kind: u8,
        mut buffer: Buffer,
        start: usize,
        end: usize,
    ) -> Result<Self, Fault> {
        let mut edges = [Edge::default(); RECORDS + 1];
        for (number, at) in (start..end).step_by(MOST_CONTENT).enumerate() {
            let record = at..end.min(at + MOST_CONTENT);
            let (before, behind) = keys.seal(kind, buffer.bytes_mut(), record)?;
            edges
                .get_mut(number)
                .ok_or(Fault::Internal)?
                .push(before.bytes());
            edges
                .get_mut(number + 1)
                .ok_or(Fault::Internal)?
                .push(behind.bytes());
        }
        Ok(Self {
            buffer,
            start,
            end,
            edges,
            written: 0,
        })
    }

    /// Writes what the socket takes; `true` = everything is written.
    fn try_write(&mut self, wire: &Wire) -> io::Result<bool> {
        loop {
            let mut slices = [IoSlice::new(&[]); 2 * RECORDS + 1];
            let (mut count, mut skip) = (0, self.written);
            let content = &self.buffer.as_ref()[self.start..self.end];
            let mut pieces = content.chunks(MOST_CONTENT);
            for edge in &self.edges {
                for part in [edge.bytes(), pieces.next().unwrap_or_default()] {
                    if skip >= part.len() {
                        skip -= part.len();
                    } else {
                        slices[count] = IoSlice::new(&part[skip..]);
                        (count, skip) = (count + 1, 0);
                    }
                }
            }
            if count == 0 {
                return Ok(true);
            }
            self.written += some(wire.tcp().try_write_vectored(&slices[..count])?)?;
        }
    }
}

fn some(written: usize) -> io::Result<usize> {
    match written {
        0 => Err(ErrorKind::WriteZero.into()),
        more => Ok(more),
    }
}

impl Staging {
    fn new() -> Self {
        Self {
            buffer: Buffer::take(),
            written: 0,
            sealed: 0,
            open: 0,
            control: false,
        }
    }

    /// Room for more content of the open record, `reserve` left free.
    fn room(&self, keys: &Keys, reserve: usize) -> usize {
        let (before, behind) = keys.overhead();
        SIZE.saturating_sub(self.sealed + before + self.open + behind + reserve)
            .min(MOST_CONTENT - self.open)
    }

    fn append(&mut self, keys: &Keys, bytes: &[u8]) {
        let at = self.sealed + keys.overhead().0 + self.open;
        self.buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.open += bytes.len();
    }

    fn seal(&mut self, keys: &mut Keys, kind: u8) -> Result<(), Fault> {
        let start = self.sealed + keys.overhead().0;
        let end = start + self.open;
        let bytes = self.buffer.bytes_mut();
        let (before, behind) = keys.seal(kind, bytes, start..end)?;
        let (before, behind) = (before.bytes(), behind.bytes());
        bytes[self.sealed..start].copy_from_slice(before);
        bytes[end..end + behind.len()].copy_from_slice(behind);
        self.sealed = end + behind.len();
        self.open = 0;
        Ok(())
    }
}

impl Outbox {
    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.flight.is_none() && self.staging.is_none()
    }

    /// Whether something of [`control`](Self::control) may be unwritten.
    pub fn has_control(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| staging.control)
    }

    /// Gathers content; returns how many bytes there was room for.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn push(&mut self, keys: &mut Keys, kind: u8, bytes: &[u8]) -> Result<usize, Fault> {
        let staging = self.staging.get_or_insert_with(Staging::new);
        let mut taken = 0;
        while taken < bytes.len() {
            let room = staging.room(keys, CONTROL);
            if staging.open == 0 && room < WORTH_BEGINNING {
                break;
            }
            let length = room.min(bytes.len() - taken);
            staging.append(keys, &bytes[taken..taken + length]);
            taken += length;
            if length == room {
                staging.seal(keys, kind)?;
            }
        }
        Ok(taken)
    }

    /// Ends the record that content is gathered in.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn seal(&mut self, keys: &mut Keys, kind: u8) -> Result<(), Fault> {
        match &mut self.staging {
            Some(staging) if staging.open > 0 => staging.seal(keys, kind),
            _ => Ok(()),
        }
    }

    /// Adds a short record of its own; nothing may be open.
    ///
    /// # Errors
    /// [`Fault`] of sealing.
    pub fn control(&mut self, keys: &mut Keys, kind: u8, bytes: &[u8]) -> Result<(), Fault> {
        let staging = self.staging.get_or_insert_with(Staging::new);
        if staging.open > 0 || staging.room(keys, 0) < bytes.len() {
            return Err(Fault::Internal);
        }
        staging.control = true;
        staging.append(keys, bytes);
        staging.seal(keys, kind)
    }

    /// The records that were gathered and are not written.
    #[doc(hidden)]
    pub fn gathered(&self) -> &[u8] {
        self.staging.as_ref().map_or(&[], |staging| {
            &staging.buffer.as_ref()[staging.written..staging.sealed]
        })
    }

    /// Takes over a sealed buffer; everything before must be written.
    pub fn launch(&mut self, wire: &Wire, mut flight: Flight) -> io::Result<()> {
        debug_assert!(self.is_empty());
        match flight.try_write(wire) {
            Ok(true) => {}
            Ok(false) => self.flight = Some(Box::new(flight)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.flight = Some(Box::new(flight));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes sealed records as far as the socket takes them; what is open stays. [`ErrorKind::WouldBlock`] = not all.
    pub fn try_write(&mut self, wire: &Wire) -> io::Result<()> {
        if let Some(flight) = &mut self.flight {
            flight.try_write(wire)?;
            self.flight = None;
        }
        if let Some(staging) = &mut self.staging {
            while staging.written < staging.sealed {
                let rest = &staging.buffer.as_ref()[staging.written..staging.sealed];
                staging.written += some(wire.tcp().try_write(rest)?)?;
            }
            if staging.open == 0 {
                self.staging = None;
            }
        }
        Ok(())
    }

    /// As [`try_write`](Self::try_write), and waits for the socket.
    pub fn poll_write(&mut self, wire: &Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.try_write(wire) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(wire.tcp().poll_write_ready(cx))?;
                }
                other => return Poll::Ready(other),
            }
        }
    }
}
