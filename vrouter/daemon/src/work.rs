//! What the worker does, as messages of `datapath.v1`.

use afxdp::{QueueState, RING_SIZE, XskIo, XskStats};
use datapath_api::v1;
use packet_io::QueueId;
use vrouter::{Stage, WorkStats, Worker};

/// The state of the worker's I/O, read on its thread.
#[derive(Debug)]
pub(crate) struct IoState {
    frames: u32,
    free_frames: u32,
    moved_packets: u64,
    queues: Vec<(QueueState, XskStats)>,
}

impl IoState {
    /// Of a worker, between two bursts.
    pub(crate) fn read(worker: &mut Worker<XskIo>) -> Result<Self, afxdp::QueueError> {
        let io = worker.io_mut();
        // One for each queue, in the same order.
        let statistics = io.statistics()?.into_iter().map(|(_, stats)| stats);
        Ok(Self {
            frames: io.umem().frames(),
            free_frames: io.free_count() as u32,
            moved_packets: io.moved_count(),
            queues: io.states().into_iter().zip(statistics).collect(),
        })
    }
}

/// The message of worker `id`; `device` names the device of a queue.
pub(crate) fn worker(
    (id, cpu): (u16, Option<usize>),
    work: &WorkStats,
    io: &IoState,
    device: impl Fn(QueueId) -> String,
) -> v1::Worker {
    let stages = Stage::ALL.into_iter().zip(work.ticks);
    let bursts = work.bursts.iter().enumerate();
    let queues = io.queues.iter().map(|(state, stats)| queue(device(state.id), state, stats));
    v1::Worker {
        id: id.into(),
        cpu: cpu.map(|cpu| cpu as u32),
        elapsed_ns: work.elapsed_ns,
        elapsed_ticks: work.elapsed_ticks,
        loops: work.loops,
        busy_loops: work.busy_loops,
        sleeps: work.sleeps,
        packets: work.packets,
        bursts: bursts
            .map(|(size, count)| v1::worker::Burst { packets_max: 1 << size, count: *count })
            .collect(),
        stages: stages
            .map(|(stage, ticks)| v1::worker::Stage { name: stage.name().to_owned(), ticks })
            .collect(),
        queues: queues.collect(),
        frames: io.frames,
        free_frames: io.free_frames,
        moved_packets: io.moved_packets,
    }
}

fn queue(device: String, state: &QueueState, stats: &XskStats) -> v1::Queue {
    v1::Queue {
        id: state.id.0.into(),
        device,
        ring_frames: RING_SIZE,
        receiving_frames: state.receiving,
        sending_frames: state.sending,
        rx_packets: state.rx_packets,
        tx_packets: state.tx_packets,
        wakeups: state.wakeups,
        wakeups_cut: state.wakeups_cut,
        rx_dropped: stats.rx_dropped,
        rx_ring_full: stats.rx_ring_full,
        fill_ring_empty: stats.rx_fill_ring_empty,
        rx_invalid: stats.rx_invalid,
        tx_invalid: stats.tx_invalid,
        tx_ring_empty: stats.tx_ring_empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_with_its_stages_bursts_and_queues() {
        let work = WorkStats {
            packets: 9,
            bursts: [1, 0, 2, 0, 0, 0, 0],
            ticks: [1, 2, 3, 4, 5, 6],
            ..WorkStats::default()
        };
        let state = QueueState {
            id: QueueId(3),
            receiving: 2000,
            sending: 7,
            rx_packets: 9,
            tx_packets: 8,
            wakeups: 4,
            wakeups_cut: 1,
        };
        let stats = XskStats { rx_ring_full: 5, ..XskStats::default() };
        let queues = vec![(state, stats)];
        let io = IoState { frames: 4096, free_frames: 100, moved_packets: 0, queues };
        let told = worker((0, Some(1)), &work, &io, |id| format!("eth{}", id.0));
        assert_eq!(
            (told.cpu, told.packets, told.frames, told.free_frames),
            (Some(1), 9, 4096, 100)
        );
        let bursts = told.bursts.iter().map(|b| (b.packets_max, b.count)).collect::<Vec<_>>();
        assert_eq!(bursts, [(1, 1), (2, 0), (4, 2), (8, 0), (16, 0), (32, 0), (64, 0)]);
        let stages = told.stages.iter().map(|s| (s.name.as_str(), s.ticks)).collect::<Vec<_>>();
        assert_eq!(stages[..3], [("receive", 1), ("read", 2), ("forward", 3)]);
        assert_eq!(stages[3..], [("send", 4), ("other", 5), ("idle", 6)]);
        let queue = &told.queues[0];
        assert_eq!((queue.device.as_str(), queue.receiving_frames), ("eth3", 2000));
        assert_eq!((queue.ring_frames, queue.rx_ring_full, queue.wakeups_cut), (2048, 5, 1));
    }
}
