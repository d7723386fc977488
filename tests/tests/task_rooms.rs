//! The pure parts of the kernel's task and exec rooms, on the host.

extern crate alloc;

#[path = "../../kernel/src/exec/elf.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod elf;
#[path = "../../kernel/src/exec/layout.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod layout;
#[path = "../../kernel/src/task/signal/pending.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod pending;
#[path = "../../kernel/src/task/pids.rs"]
mod pids;
#[path = "../../kernel/src/exec/script.rs"]
mod script;

use elf::{EHDR_SIZE, Header, Image, PHDR_SIZE};
use layout::{Sizes, layout};
use mm::Errno;
use pending::{MAX_QUEUED, Pending, Queued, SI_QUEUE, SigInfo, bit};
use script::script_line;

/// A program header: type, flags, offset, address, sizes in file and memory.
type Ph = (u32, u32, u64, u64, u64, u64);

fn file(kind: u16, phdrs: &[Ph]) -> Vec<u8> {
    let mut b = vec![0u8; EHDR_SIZE];
    b[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    b[16..18].copy_from_slice(&kind.to_le_bytes());
    b[18..20].copy_from_slice(&62u16.to_le_bytes());
    b[24..32].copy_from_slice(&0x401000u64.to_le_bytes());
    b[32..40].copy_from_slice(&(EHDR_SIZE as u64).to_le_bytes());
    b[54..56].copy_from_slice(&(PHDR_SIZE as u16).to_le_bytes());
    b[56..58].copy_from_slice(&(phdrs.len() as u16).to_le_bytes());
    for (kind, flags, offset, vaddr, filesz, memsz) in phdrs {
        b.extend(kind.to_le_bytes());
        b.extend(flags.to_le_bytes());
        for w in [*offset, *vaddr, *vaddr, *filesz, *memsz, 0x1000] {
            b.extend(w.to_le_bytes());
        }
    }
    b
}

fn parse(b: &[u8]) -> Result<Image, Errno> {
    let h = Header::parse(b)?;
    Image::parse(h, b.get(h.phoff as usize..).ok_or(Errno::ENOEXEC)?)
}

const TEXT: Ph = (1, 5, 0, 0x400000, 0x1234, 0x1234);
const DATA: Ph = (1, 6, 0x2000, 0x402000, 0x100, 0x3000);

#[test]
fn a_plain_program_is_understood() {
    let image = parse(&file(2, &[TEXT, DATA])).unwrap();
    assert_eq!(image.segments.len(), 2);
    assert_eq!(image.span(), (0x400000, 0x405000));
    assert_eq!(image.phdr, 0x400040);
    assert!(!image.header.dynamic);
    assert!(image.interp.is_none());
}

#[test]
fn malformed_headers_are_enoexec() {
    let good = file(2, &[TEXT, DATA]);
    let bad = |at: usize, byte: u8| {
        let mut b = good.clone();
        b[at] = byte;
        assert_eq!(parse(&b).unwrap_err(), Errno::ENOEXEC, "byte {at}");
    };
    bad(0, 0); // magic
    bad(4, 1); // 32 bits
    bad(5, 2); // big endian
    bad(16, 1); // an object file
    bad(18, 3); // i386
    bad(54, 32); // size of a program header
    bad(56, 0); // none
    for len in 0..good.len() {
        assert!(parse(&good[..len]).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn segments_that_cannot_be_mapped_are_enoexec() {
    let refuse = |ph: Ph| assert_eq!(parse(&file(2, &[ph])).unwrap_err(), Errno::ENOEXEC);
    refuse((1, 5, 0, 0x400000, 0x2000, 0x1000)); // more in the file than in memory
    refuse((1, 5, 0x10, 0x400000, 0x10, 0x10)); // not congruent
    refuse((1, 5, 0, 0x7fff_ffff_f000, 0x1000, 0x1000)); // kernel's
    refuse((1, 5, 0, u64::MAX - 0xfff, 0x1000, 0x1000)); // wraps
    refuse((1, 5, u64::MAX - 0xfff, 0x400000, 0x1000, 0x1000)); // offset wraps
    assert!(parse(&file(2, &[(4, 4, 0, 0, 0, 0)])).is_err()); // nothing to load
}

#[test]
fn segments_may_come_in_any_order() {
    let span = |segments: &[Ph]| parse(&file(2, segments)).unwrap().span();
    assert_eq!(span(&[DATA, TEXT]), span(&[TEXT, DATA]));
}

#[test]
fn no_bytes_make_the_parser_panic() {
    let good = file(3, &[TEXT, DATA, (3, 4, 0x200, 0, 0x20, 0x20)]);
    let mut seed = 1u64;
    for _ in 0..20_000 {
        let mut b = good.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) as usize % b.len();
            b[at] = (seed >> 24) as u8;
        }
        if let Ok(image) = parse(&b) {
            let (first, last) = image.span();
            assert!(first <= last);
        }
    }
}

#[test]
fn the_first_stack_is_aligned_and_in_order() {
    for argc in 0..9 {
        for bytes in [1, 17, 4095, 4096, 70_000] {
            let s = Sizes {
                argc,
                envc: 3,
                arg_bytes: bytes,
                env_bytes: 40,
                execfn_bytes: 9,
                auxv: 20,
            };
            let top = 0x7fff_ffff_f000;
            let l = layout(top, top - 0x21000, &s).unwrap();
            assert_eq!(l.sp % 16, 0);
            let words = 1 + argc + 1 + 3 + 1 + 40;
            assert!(l.sp + words as u64 * 8 <= l.random);
            assert!(l.random + 16 <= l.platform);
            assert!(l.platform + 7 <= l.arg_strings);
            assert_eq!(l.arg_strings + bytes as u64, l.env_strings);
            assert_eq!(l.env_strings + 40, l.execfn);
            assert_eq!(l.execfn + 9, top - 8);
        }
    }
}

#[test]
fn a_stack_that_does_not_fit_is_refused() {
    let s = Sizes {
        argc: 1,
        envc: 0,
        arg_bytes: 0x22000,
        env_bytes: 0,
        execfn_bytes: 2,
        auxv: 20,
    };
    assert_eq!(
        layout(0x7fff_ffff_f000, 0x7fff_ffff_f000 - 0x21000, &s),
        None
    );
}

#[test]
fn script_lines() {
    let line = |s: &'static str| script_line(s.as_bytes());
    assert_eq!(line("#!/bin/sh\n"), Ok((&b"/bin/sh"[..], None)));
    assert_eq!(
        line("#! \t/bin/sh  -e x \nrest"),
        Ok((&b"/bin/sh"[..], Some(&b"-e x"[..])))
    );
    assert_eq!(line("#!/bin/sh"), Ok((&b"/bin/sh"[..], None)));
    assert_eq!(line("#!\n"), Err(Errno::ENOEXEC));
    assert_eq!(line("#!   \n"), Err(Errno::ENOEXEC));
    assert_eq!(
        script_line(&[b"#!".to_vec(), vec![b'a'; 254]].concat()),
        Err(Errno::ENOEXEC)
    );
}

#[test]
fn pids_wrap_and_skip_what_is_taken() {
    let taken = [301, 302, 5];
    let free = |p: u32| !taken.contains(&p);
    assert_eq!(pids::next_free(4, 1000, 300, free), Some(6));
    assert_eq!(pids::next_free(999, 1000, 300, free), Some(300));
    assert_eq!(pids::next_free(300, 1000, 300, free), Some(303));
    assert_eq!(pids::next_free(0, 4, 1, |_| false), None);
    assert_eq!(pids::next_free(2, 4, 1, |p| p == 2), Some(2));
}

fn queued(signo: u32, value: u64) -> Option<Box<Queued>> {
    let mut words = *SigInfo::new(signo, SI_QUEUE).words();
    words[3] = value;
    Some(Queued::new(SigInfo::from_words(words)))
}

#[test]
fn ordinary_signals_are_pending_once_and_real_time_ones_in_order() {
    let mut p = Pending::new();
    assert!(p.add(10, queued(10, 1)).is_none());
    assert!(p.add(10, queued(10, 2)).is_some());
    for i in 0..3 {
        assert!(p.add(40, queued(40, i)).is_none());
    }
    assert!(p.add(35, queued(35, 9)).is_none());
    let mut got = Vec::new();
    while let Some((info, _)) = p.take(u64::MAX) {
        got.push((info.signo(), info.words()[3]));
    }
    assert_eq!(got, [(10, 1), (35, 9), (40, 0), (40, 1), (40, 2)]);
    assert_eq!((p.set, p.queued()), (0, 0));
}

#[test]
fn faults_come_first_and_masks_are_kept() {
    let mut p = Pending::new();
    p.add(1, queued(1, 0));
    p.add(11, queued(11, 0));
    p.add(17, None);
    assert_eq!(p.take(!bit(11)).unwrap().0.signo(), 1);
    p.add(1, queued(1, 0));
    assert_eq!(p.take(u64::MAX).unwrap().0.signo(), 11);
    assert!(p.take(bit(40)).is_none());
    let (info, node) = p.take(bit(17)).unwrap();
    assert_eq!((info.code(), node.is_none()), (pending::SI_KERNEL, true));
}

#[test]
fn a_flush_takes_what_it_should() {
    let mut p = Pending::new();
    for s in [18, 20, 40, 20 + 20, 22] {
        p.add(s, queued(s, 0));
    }
    let gone = p.flush(bit(20) | bit(40));
    assert!(gone.is_some());
    drop(gone);
    assert_eq!(p.set, bit(18) | bit(22));
    assert_eq!(p.queued(), 2);
}

#[test]
fn the_queue_is_bounded() {
    let mut p = Pending::new();
    for i in 0..MAX_QUEUED {
        assert!(p.add(50, queued(50, i as u64)).is_none());
    }
    assert!(p.add(50, queued(50, 0)).is_some());
    assert!(p.add(51, queued(51, 0)).is_some());
    assert_eq!(p.set, bit(50) | bit(51));
}
