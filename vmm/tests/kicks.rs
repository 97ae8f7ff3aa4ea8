//! Kicks that hit KVM while it acts for the guest on a page that is missing.
//!
//! The guest runs in ring 0, which hosts without VMX and SVM interpret, so that nearly every access
//! to memory is one that KVM makes for it: operands, stack, instructions, page tables, descriptors
//! and the frames of interrupts. Memory is missing and arrives late; meanwhile the guest is paused
//! and resumed at random instants, thousands of times. It must not notice: it checks what it reads,
//! counts what it does, and leaves its counters in memory.
//!
//! Also: a guest that waits for a page that never comes can be paused, is not saved, and goes away.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::thread::JoinHandle;

use common::{Prng, Protocol, Screen, read, write};
use godwit_uffd::guest::{Filled, GuestUffd};
use godwit_uffd::kernel::KernelUffd;
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd::{Event, Wake};
use godwit_vmm::Error;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

/// The guest. For each of 2000 pages: check and count on two words of it, copy a part of it with a
/// string instruction, call a function in a page of its own, with a stack in a page of its own; all
/// that six times over, while a timer interrupts it.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xb8, 0x00, 0x00, 0x80, 0x00, // mov eax,0x800000
    0x0f, 0x22, 0xd8, // mov cr3,rax
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0x10, 0xc0, 0x02, // lidt 0x2c01000
    0xbc, 0x00, 0x30, 0xc0, 0x02, // mov esp,0x2c03000
    0xb0, 0x11, // mov al,0x11
    0xe6, 0x20, // out 0x20,al
    0xe6, 0xa0, // out 0xa0,al
    0xb0, 0x20, // mov al,0x20
    0xe6, 0x21, // out 0x21,al
    0xb0, 0x28, // mov al,0x28
    0xe6, 0xa1, // out 0xa1,al
    0xb0, 0x04, // mov al,0x4
    0xe6, 0x21, // out 0x21,al
    0xb0, 0x02, // mov al,0x2
    0xe6, 0xa1, // out 0xa1,al
    0xb0, 0x01, // mov al,0x1
    0xe6, 0x21, // out 0x21,al
    0xe6, 0xa1, // out 0xa1,al
    0xb0, 0xfe, // mov al,0xfe
    0xe6, 0x21, // out 0x21,al
    0xb0, 0xff, // mov al,0xff
    0xe6, 0xa1, // out 0xa1,al
    0xb0, 0x34, // mov al,0x34
    0xe6, 0x43, // out 0x43,al
    0xb0, 0xa9, // mov al,0xa9
    0xe6, 0x40, // out 0x40,al
    0xb0, 0x04, // mov al,0x4
    0xe6, 0x40, // out 0x40,al
    0x45, 0x31, 0xff, // xor r15d,r15d
    0x31, 0xdb, // xor ebx,ebx
    0xfb, // sti
    // pass:
    0x41, 0xbe, 0xd0, 0x07, 0x00, 0x00, // mov r14d,0x7d0
    0xbf, 0x00, 0x00, 0x00, 0x01, // mov edi,0x1000000
    0xbd, 0x00, 0x10, 0x00, 0x02, // mov ebp,0x2001000
    0x41, 0xbd, 0x00, 0x00, 0x00, 0x03, // mov r13d,0x3000000
    // page:
    0x48, 0x89, 0xec, // mov rsp,rbp
    0x4c, 0x39, 0x3f, // cmp qword [rdi],r15
    0x75, 0x66, // jne cf
    0x48, 0xff, 0x07, // inc qword [rdi]
    0x41, 0x56, // push r14
    0x41, 0xff, 0xd5, // call r13
    0x58, // pop rax
    0x4c, 0x39, 0xf0, // cmp rax,r14
    0x75, 0x58, // jne cf
    0x4c, 0x39, 0xbf, 0x00, 0x08, 0x00, 0x00, // cmp qword [rdi+0x800],r15
    0x75, 0x4f, // jne cf
    0x49, 0x89, 0xfc, // mov r12,rdi
    0x48, 0x89, 0xfe, // mov rsi,rdi
    0x48, 0x81, 0xc7, 0x00, 0x08, 0x00, 0x00, // add rdi,0x800
    0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx,0x4
    0xf3, 0x48, 0xa5, // rep movs qword [rdi],qword [rsi]
    0x4c, 0x89, 0xe7, // mov rdi,r12
    0xf0, 0x48, 0xff, 0x47, 0x08, // lock inc qword [rdi+0x8]
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add rdi,0x1000
    0x48, 0x81, 0xc5, 0x00, 0x10, 0x00, 0x00, // add rbp,0x1000
    0x49, 0x81, 0xc5, 0x00, 0x10, 0x00, 0x00, // add r13,0x1000
    0x49, 0xff, 0xce, // dec r14
    0x75, 0xaa, // jne 61
    0x49, 0xff, 0xc7, // inc r15
    0x49, 0x83, 0xff, 0x06, // cmp r15,0x6
    0x75, 0x8b, // jne 4b
    0x48, 0x81, 0xfb, 0xe0, 0x2e, 0x00, 0x00, // cmp rbx,0x2ee0
    0x75, 0x06, // jne cf
    0xb0, 0x2a, // mov al,0x2a
    0xe6, 0xf4, // out 0xf4,al
    0xeb, 0xfe, // jmp cd
    // bad:
    0xb0, 0x01, // mov al,0x1
    0xe6, 0xf4, // out 0xf4,al
    0xeb, 0xfe, // jmp d3
    // timer:
    0x50, // push rax
    0xb0, 0x20, // mov al,0x20
    0xe6, 0x20, // out 0x20,al
    0x48, 0xff, 0x04, 0x25, 0x00, 0x40, 0xc0, 0x02, // inc qword 0x2c04000
    0x58, // pop rax
    0x48, 0xcf, // iretq
];

const MEMORY_MIB: u64 = 64;
const PAGE_TABLES: u64 = 0x80_0000;
const DATA: u64 = 0x100_0000;
const CODE: u64 = 0x300_0000;
const IDTR: u64 = 0x2c0_1000;
const IDT: u64 = 0x2c0_2000;
const TICKS: u64 = 0x2c0_4000;
const STUBS: u64 = 0x2c0_5000;
const PAGES: u64 = 2000;
const PASSES: u64 = 6;
const TIMER_HANDLER: u64 = common::ENTRY + 0xd5;
const PAGE: usize = 4096;

/// A guest with everything in its memory that its code counts on.
fn prepare() -> Vm {
    let config = common::config(1, MEMORY_MIB, Backing::Anon);
    let vm = Vm::create(&config, Box::new(Screen::default())).unwrap();
    vm.boot(&common::elf(GUEST, Protocol::Linux64), None, "").unwrap();
    // Page tables with small pages, so that there are many of them.
    write(&vm, PAGE_TABLES, &[(PAGE_TABLES + 0x1000) | 3]);
    write(&vm, PAGE_TABLES + 0x1000, &[(PAGE_TABLES + 0x2000) | 3]);
    let tables = MEMORY_MIB / 2;
    let directory: Vec<u64> =
        (0..tables).map(|table| (PAGE_TABLES + 0x3000 + table * 0x1000) | 3).collect();
    write(&vm, PAGE_TABLES + 0x2000, &directory);
    let entries: Vec<u64> = (0..tables * 512).map(|page| (page << 12) | 3).collect();
    write(&vm, PAGE_TABLES + 0x3000, &entries);
    // A function in each page: inc rbx; ret.
    for page in 0..PAGES {
        vm.memory()
            .inner()
            .write_slice(&[0x48, 0xff, 0xc3, 0xc3], GuestAddress(CODE + page * PAGE as u64))
            .unwrap();
    }
    // The timer, and for each exception a stub that ends the guest with its number plus 100.
    write(&vm, IDTR, &[(IDT << 16) | 0xfff, IDT >> 48]);
    for vector in 0..33 {
        let stub = STUBS + vector * 16;
        let code = [0xb0, u8::try_from(vector).unwrap() + 100, 0xe6, 0xf4, 0xeb, 0xfe];
        vm.memory().inner().write_slice(&code, GuestAddress(stub)).unwrap();
        let handler = if vector == 32 { TIMER_HANDLER } else { stub };
        write(&vm, IDT + vector * 16, &common::gate(handler));
    }
    vm
}

/// All pages of a guest at rest.
fn pages(vm: &Vm) -> Vec<[u8; PAGE]> {
    let count = usize::try_from(vm.memory().bytes()).unwrap() / PAGE;
    let mut pages = vec![[0; PAGE]; count];
    for (index, page) in pages.iter_mut().enumerate() {
        vm.memory().inner().read_slice(page, GuestAddress((index * PAGE) as u64)).unwrap();
    }
    pages
}

/// Serves faults late and in its own time; when told to finish, brings the rest.
struct Resolver {
    finish: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Resolver {
    fn start(memory: GuestUffd<KernelUffd>, pages: Vec<[u8; PAGE]>, seed: u64) -> Resolver {
        let finish = Arc::new(AtomicBool::new(false));
        let faults = Arc::new(AtomicU64::new(0));
        let serve = Serve { memory, pages, prng: Prng(seed), done: HashMap::new() };
        let thread = {
            let (finish, faults) = (Arc::clone(&finish), Arc::clone(&faults));
            thread::spawn(move || serve.run(&finish, &faults))
        };
        Resolver { finish, faults, thread }
    }

    fn finish(self) -> u64 {
        self.finish.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.faults.load(Ordering::SeqCst)
    }
}

struct Serve {
    memory: GuestUffd<KernelUffd>,
    pages: Vec<[u8; PAGE]>,
    prng: Prng,
    done: HashMap<usize, ()>,
}

impl Serve {
    fn run(mut self, finish: &AtomicBool, faults: &AtomicU64) {
        let mut events = Vec::new();
        while !finish.load(Ordering::SeqCst) {
            let mut fds = [PollFd::new(&self.memory, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
            self.memory.read_events(&mut events).unwrap();
            for event in events.drain(..) {
                let Event::Fault(fault) = event else { panic!("{event:?}") };
                faults.fetch_add(1, Ordering::SeqCst);
                self.prng.dawdle(20_000);
                let page = self.memory.space().page_at(fault.address).unwrap();
                self.install(usize::try_from(page.0).unwrap());
            }
        }
        for page in 0..self.pages.len() {
            self.install(page);
        }
    }

    fn install(&mut self, page: usize) {
        let run = PageRun::one(PageIndex(u32::try_from(page).unwrap()));
        if self.done.insert(page, ()).is_some() {
            self.memory.wake(run).unwrap();
            return;
        }
        let filled = self.memory.copy(run, &self.pages[page], Wake::Now).unwrap();
        assert_eq!(filled, Filled::All);
    }
}

/// Moves the guest to a new VM whose memory arrives late, and kicks it there.
fn hop(from: &Vm, seed: u64, screen: &Screen) -> (Vm, u64) {
    let sections = from.save().unwrap();
    let next = Vm::create(from.config(), Box::new(screen.clone())).unwrap();
    let uffd = next.memory().register_missing().unwrap();
    let resolver = Resolver::start(uffd, pages(from), seed);
    next.restore(&sections).unwrap();
    next.start();
    let mut prng = Prng(!seed);
    for _ in 0..200 {
        prng.dawdle(40_000);
        next.pause().unwrap();
        prng.dawdle(1_000);
        if next.resume().is_err() {
            break;
        }
    }
    let faults = resolver.finish();
    next.memory().set_complete().unwrap();
    next.pause().unwrap();
    (next, faults)
}

#[test]
fn kicked_guest_with_missing_memory_counts_right() {
    if !common::have_kvm() {
        return;
    }
    let mut vm = prepare();
    let mut faults = 0;
    for seed in 1.. {
        if let Some(exit) = vm.exits().peek() {
            assert_eq!(exit, GuestExit::PowerOff { code: 42 }, "after hop {seed}");
            break;
        }
        let more;
        (vm, more) = hop(&vm, seed, &Screen::default());
        faults += more;
    }
    println!("{faults} faults, {} ticks", read(&vm, TICKS));
    for page in 0..PAGES {
        let at = DATA + page * PAGE as u64;
        let words = [read(&vm, at), read(&vm, at + 8), read(&vm, at + 2048)];
        assert_eq!(words, [PASSES; 3], "page {page}");
    }
}

#[test]
fn kicked_programs_with_missing_memory_find_every_byte() {
    if !common::have_kvm() {
        return;
    }
    let screen = Screen::default();
    let config = common::config(2, MEMORY_MIB, Backing::Anon);
    let mut vm = Vm::create(&config, Box::new(screen.clone())).unwrap();
    let line = "vcpus=2 timer=100 workload=smp passes=10 seed=11 faults=64 exit=0";
    vm.boot(&KernelImage::Embedded(BARE), None, line).unwrap();
    vm.start();
    while !screen.text().contains("filled") && vm.exits().peek().is_none() {
        thread::yield_now();
    }
    vm.pause().unwrap();
    let mut faults = 0;
    for seed in 1.. {
        if let Some(exit) = vm.exits().peek() {
            assert_eq!(
                exit,
                GuestExit::PowerOff { code: 0 },
                "after hop {seed}: {}",
                screen.text()
            );
            break;
        }
        let more;
        (vm, more) = hop(&vm, seed, &screen);
        faults += more;
    }
    println!("{faults} faults");
}

/// A guest of which nothing has arrived and nothing is served, started.
fn starving() -> (Vm, GuestUffd<KernelUffd>, Vec<[u8; PAGE]>) {
    let first = prepare();
    let sections = first.save().unwrap();
    let vm = Vm::create(first.config(), Box::new(Screen::default())).unwrap();
    let uffd = vm.memory().register_missing().unwrap();
    vm.restore(&sections).unwrap();
    vm.start();
    let mut fds = [PollFd::new(&uffd, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the guest did not touch its memory");
    (vm, uffd, pages(&first))
}

#[test]
fn pause_does_not_wait_for_a_page_but_save_refuses() {
    if !common::have_kvm() {
        return;
    }
    let (vm, uffd, pages) = starving();
    for _ in 0..3 {
        vm.pause().unwrap();
        assert!(vm.is_paused());
        vm.resume().unwrap();
        assert!(!vm.is_paused());
    }
    vm.pause().unwrap();
    match vm.save() {
        // Where the processor runs ring 0, the vCPU is out of the guest.
        Ok(_) | Err(Error::AccessUnfinished { cpu: 0 }) => {}
        Err(error) => panic!("{error}"),
    }
    let resolver = Resolver::start(uffd, pages, 1);
    resolver.finish();
    vm.memory().set_complete().unwrap();
    // The page has come, and the guest is still paused.
    assert!(vm.is_paused());
    vm.pause().unwrap();
    vm.save().unwrap();
    assert_eq!(read(&vm, TICKS), 0);
    vm.resume().unwrap();
    assert_eq!(common::wait_for_end(&vm), GuestExit::PowerOff { code: 42 });
}

#[test]
fn shutdown_does_not_wait_for_a_page() {
    if !common::have_kvm() {
        return;
    }
    for _ in 0..3 {
        let (vm, uffd, _) = starving();
        vm.shutdown();
        assert_eq!(vm.exits().peek(), None);
        assert!(vm.resume().is_err());
        drop(vm);
        drop(uffd);
    }
}
