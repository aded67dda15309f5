//! Keeps what requests held at their highest. A balloon may last a second: nobody who polls would see it, so it is
//! measured where it happens, with each sample of a request in flight.

use super::Writer;
use super::requests::Request;
use crate::layout::{PEAK_BUCKETS, PEAKS, PEAKS_IN_FLIGHT, PeakRecord, SectionKind};

/// Below this no one asks which stack a peak was made of, bytes.
const LEAST_LOOK_BYTES: f64 = 262_144.0;
/// From here on a request in flight is shown to readers, so that they can tell what a process was at when it was killed,
/// bytes.
const SHOWN_BYTES: f64 = 4_194_304.0;
/// A peak is looked at again when it has grown by this factor.
const LOOK_AGAIN: f64 = 1.25;
/// Stacks that are told apart when a peak is looked at; what comes later only adds to those.
const STACKS: usize = 16;
/// Peaks of one route and outcome that are kept.
const PEAKS_A_KIND: usize = 8;

/// The highest that a request in flight has held so far.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Peak {
    bytes: f64,
    /// The variance of that estimate, bytes squared.
    variance: f64,
    /// The peak when it was last looked at, and what was found.
    looked_bytes: f64,
    top_bytes: f64,
    top_stack: u32,
    phase: u32,
}

impl Peak {
    pub(super) const NONE: Self =
        Self { bytes: 0.0, variance: 0.0, looked_bytes: 0.0, top_bytes: 0.0, top_stack: 0, phase: 0 };
}

impl Writer<'_> {
    /// After a sample of a request: is this its highest so far, and what is it made of?
    pub(super) fn look_for_peak(&mut self, index: u32) {
        let request = self.requests.slot(index);
        let (bytes, variance) = (request.live_bytes(), request.live_variance());
        let (phase, head) = (request.phase(), request.first);
        if bytes <= request.peak.bytes {
            return;
        }
        (request.peak.bytes, request.peak.variance) = (bytes, variance);
        if bytes < LEAST_LOOK_BYTES || bytes < request.peak.looked_bytes * LOOK_AGAIN {
            return;
        }
        let mut stacks = [(0, 0.0); STACKS];
        for record in self.samples.of_request(head) {
            let place = stacks.iter_mut().find(|(stack, bytes)| *stack == record.stack || *bytes == 0.0);
            if let Some(place) = place {
                *place = (record.stack, place.1 + record.weight);
            }
        }
        let top = stacks.into_iter().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or_default();
        let peak = &mut self.requests.slot(index).peak;
        (peak.looked_bytes, peak.phase) = (bytes, u32::from(phase));
        (peak.top_stack, peak.top_bytes) = top;
        if bytes >= SHOWN_BYTES {
            self.show(index);
        }
    }

    /// Shows a request in flight, if a place is left or it has one.
    fn show(&mut self, index: u32) {
        let request = *self.requests.slot(index);
        let in_flight = &self.peaks[PEAKS..];
        let ordinal = Self::number_in_flight(index);
        let own = in_flight.iter().position(|record| record.bytes > 0.0 && record.ordinal == ordinal);
        let Some(at) = own.or_else(|| in_flight.iter().position(|record| record.bytes == 0.0)) else { return };
        let name = self.name_of(&request);
        let peak = request.peak;
        self.peaks[PEAKS + at] = PeakRecord {
            bytes: peak.looked_bytes,
            top_bytes: peak.top_bytes,
            top_stack: peak.top_stack,
            route: 0,
            ordinal,
            requests: self.header.requests,
            left_bytes: 0.0,
            outcome: 0,
            phase: peak.phase as u8,
            reserved: [0; 2],
            deviation: peak.variance.sqrt() as f32,
            name,
        };
        self.entry(SectionKind::Peaks).used = (PEAKS + PEAKS_IN_FLIGHT) as u32;
    }

    /// A request ends, and is no longer one in flight.
    fn hide(&mut self, index: u32) {
        let ordinal = Self::number_in_flight(index);
        for record in self.peaks[PEAKS..].iter_mut().filter(|record| record.ordinal == ordinal) {
            (record.bytes, record.name) = (0.0, 0);
        }
    }

    /// The number of a request in flight that its samples have as their ordinal.
    pub(super) fn number_in_flight(index: u32) -> u64 {
        u64::from(index) + 1
    }

    /// A request ends: its peak is counted, and kept where it is among the highest.
    pub(super) fn keep_peak(&mut self, index: u32, route: u32, outcome: u8, ordinal: u64) {
        let request = *self.requests.slot(index);
        let peak = request.peak;
        if peak.looked_bytes >= SHOWN_BYTES {
            self.hide(index);
        }
        if let Some(record) = self.names.routes.get_mut(route as usize) {
            record.peaks[outcome as usize * PEAK_BUCKETS + bucket(peak.bytes)] += 1;
            record.peak_bytes[outcome as usize] = record.peak_bytes[outcome as usize].max(peak.bytes);
        }
        if peak.looked_bytes == 0.0 {
            return;
        }
        let new = PeakRecord {
            bytes: peak.bytes,
            top_bytes: peak.top_bytes,
            top_stack: peak.top_stack,
            route,
            ordinal,
            requests: self.header.requests,
            left_bytes: request.live_bytes(),
            outcome,
            phase: peak.phase as u8,
            reserved: [0; 2],
            deviation: peak.variance.sqrt() as f32,
            name: 0,
        };
        let ended = &mut self.peaks[..PEAKS];
        let of_kind =
            ended.iter().filter(|old| old.bytes > 0.0 && (old.route, old.outcome) == (route, outcome)).count();
        let may_go = |old: &PeakRecord| of_kind < PEAKS_A_KIND || (old.route, old.outcome) == (route, outcome);
        let lowest = ended.iter_mut().filter(|old| may_go(old)).min_by(|one, other| one.bytes.total_cmp(&other.bytes));
        if let Some(lowest) = lowest.filter(|lowest| lowest.bytes < new.bytes) {
            *lowest = new;
        }
        self.entry(SectionKind::Peaks).used = (PEAKS + PEAKS_IN_FLIGHT) as u32;
    }

    /// A request that has ended gets another outcome: its peak goes with it.
    pub(super) fn move_peak(&mut self, request: &Request, outcome: u8, ordinal: u64) {
        if let Some(record) = self.names.routes.get_mut(request.route() as usize) {
            let at = bucket(request.peak.bytes);
            let before = &mut record.peaks[request.outcome() * PEAK_BUCKETS + at];
            *before = before.saturating_sub(1);
            record.peaks[outcome as usize * PEAK_BUCKETS + at] += 1;
            record.peak_bytes[outcome as usize] = record.peak_bytes[outcome as usize].max(request.peak.bytes);
        }
        for record in self.peaks.iter_mut().filter(|record| request.owns(record)) {
            (record.outcome, record.ordinal) = (outcome, ordinal);
        }
    }
}

/// The bucket of a peak: below 2^i KiB.
fn bucket(bytes: f64) -> usize {
    let kib = (bytes / 1024.0) as u64;
    kib.checked_ilog2().map_or(0, |log| log as usize + 1).min(PEAK_BUCKETS - 1)
}
