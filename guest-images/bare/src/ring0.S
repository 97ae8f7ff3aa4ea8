# Everything that runs in ring 0. Compiled Rust is not here, because some hosts interpret ring 0
# and cannot interpret SSE, which the compiler uses wherever it likes. Rust starts in ring 3, where
# port I/O is allowed by the TSS bitmap and everything else that needs ring 0 is an int3.
#
# Three sections, one for each mode of the processor: the build disassembles each and refuses it if
# a vector register appears.

.set VCPUS_MAX, 16
.set RING0_STACK_BYTES, 4096
.set RING3_STACK_BYTES, 32768
.set TSS_STRIDE, 128
.set IO_BITMAP_BYTES, 8192

# Selectors are those of Linux: some hosts run ring 3 natively only with cs 0x33 and ss 0x2b.
.set CODE32, 0x08
.set CODE64, 0x10
.set DATA, 0x18
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set TSS_FIRST, 0x40

.set CR0_BITS, 0x80010033              # PG WP NE ET MP PE
.set CR4_BITS, 0x620                   # OSXMMEXCPT OSFXSR PAE
.set EFER, 0xc0000080
.set EFER_LME, 0x100

.set VECTORS, 48
.set VECTOR_BREAKPOINT, 3
.set VECTOR_PAGE_FAULT, 14
.set VECTOR_TIMER, 32                  # irq 0 of the first PIC
.set VECTOR_SPURIOUS, 39               # irq 7
.set VECTORS_WITH_ERROR, 0x60227d00    # 8, 10 to 14, 17, 21, 29, 30

.set PORT_SERIAL, 0x3f8
.set PORT_EXIT, 0xf4
.set PORT_PIC1, 0x20
.set PORT_PIC2, 0xa0
.set EXIT_EXCEPTION, 3

# ---------------------------------------------------------------- the note of the PVH protocol
.section .note.pvh, "a", @note
.balign 4
.long 4                                # bytes of the name
.long 8                                # bytes of the descriptor
.long 18                               # XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.quad pvh_start

# ---------------------------------------------------------------- start of the other vCPUs
# Copied to AP_TRAMPOLINE, where the start-up IPI points them.
.section .ring0.16, "ax", @progbits
.code16
.globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl $0x11, %eax                   # ET PE
    movl %eax, %cr0
    ljmpl $CODE32, $ap_start
.balign 8
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

# ---------------------------------------------------------------- 32 bits: PVH, and the others
.section .ring0.32, "ax", @progbits
.code32
.globl pvh_start
pvh_start:
    cli
    cld
    movl %ebx, boot_information
    movl $0, boot_protocol
    xorl %ebp, %ebp
    lgdtl gdt_pointer
    jmp enter_long_mode

ap_start:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ap_index, %ebp

enter_long_mode:
    movl $CR4_BITS, %eax
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl $CR0_BITS, %eax
    movl %eax, %cr0
    ljmpl $CODE64, $vcpu_start

# ---------------------------------------------------------------- 64 bits
.section .ring0, "ax", @progbits
.code64
.globl linux64_start
linux64_start:
    cli
    cld
    movq %rsi, boot_information(%rip)
    movl $1, boot_protocol(%rip)
    lgdt gdt_pointer(%rip)
    movl $CR4_BITS, %eax
    movq %rax, %cr4
    movl $page_map, %eax
    movq %rax, %cr3
    movl $CR0_BITS, %eax
    movq %rax, %cr0
    xorl %ebp, %ebp
    movl $(ring0_stacks + RING0_STACK_BYTES), %esp
    pushq $CODE64
    pushq $vcpu_start
    lretq

# Every vCPU comes here, in 64-bit mode on our tables, with its index in ebp.
vcpu_start:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leal 1(%rbp), %ebx
    imull $RING0_STACK_BYTES, %ebx, %ebx
    addq $ring0_stacks, %rbx           # the top of this vCPU's ring-0 stack
    movq %rbx, %rsp
    testl %ebp, %ebp
    jnz 1f
    call make_idt
    call set_up_pic
    movb $0xff, io_bitmap_end(%rip)
1:  lidt idt_pointer(%rip)
    call load_tss
    leal 1(%rbp), %ecx
    imull $RING3_STACK_BYTES, %ecx, %ecx
    addq $(ring3_stacks - 8), %rcx     # as after a call: 8 below a multiple of 16
    pushq $USER_DATA
    pushq %rcx
    pushq $0x202                       # IF
    pushq $USER_CODE
    pushq $ring3_start
    movl %ebp, %edi
    movq boot_information(%rip), %rsi
    movl boot_protocol(%rip), %edx
    iretq

# One gate for each vector; the stubs are 16 bytes apart. int3 may come from ring 3.
make_idt:
    movl $vectors, %eax
    movq $idt, %rdi
    movl $VECTORS, %ecx
1:  movw %ax, (%rdi)
    movw $CODE64, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movl %eax, %edx
    shrl $16, %edx
    movl %edx, 6(%rdi)
    addl $16, %eax
    addq $16, %rdi
    decl %ecx
    jnz 1b
    movw $0xee00, idt + 16 * VECTOR_BREAKPOINT + 4
    ret

# Moves the vectors of both PICs behind those of the exceptions and masks all lines. Not in Rust:
# firmware may have left the timer running, and in ring 3 its interrupt could come half way through.
set_up_pic:
    movl $0x11, %eax                   # what follows: vector, wiring, mode
    outb %al, $PORT_PIC1
    outb %al, $PORT_PIC2
    movb $VECTOR_TIMER, %al
    outb %al, $(PORT_PIC1 + 1)
    movb $(VECTOR_TIMER + 8), %al
    outb %al, $(PORT_PIC2 + 1)
    movb $4, %al
    outb %al, $(PORT_PIC1 + 1)
    movb $2, %al
    outb %al, $(PORT_PIC2 + 1)
    movb $1, %al
    outb %al, $(PORT_PIC1 + 1)
    outb %al, $(PORT_PIC2 + 1)
    movb $0xff, %al
    outb %al, $(PORT_PIC1 + 1)
    outb %al, $(PORT_PIC2 + 1)
    ret

# The TSSes lie 128 bytes apart before one bitmap, which they share. rbx: ring-0 stack, ebp: index.
load_tss:
    movl %ebp, %eax
    imull $TSS_STRIDE, %eax, %eax
    movl $(io_bitmap - tss_area), %ecx
    subl %eax, %ecx                    # from this TSS to the bitmap
    addq $tss_area, %rax
    movq %rbx, 4(%rax)
    movw %cx, 102(%rax)
    addl $IO_BITMAP_BYTES, %ecx        # the limit covers the byte of ones behind it
    movl %ebp, %edx
    shll $4, %edx
    addq $(gdt + TSS_FIRST), %rdx
    movw %cx, (%rdx)
    movw %ax, 2(%rdx)
    shrl $16, %eax
    movb %al, 4(%rdx)
    movb $0x89, 5(%rdx)
    movb %ah, 7(%rdx)
    movl %ebp, %eax
    shll $4, %eax
    addl $TSS_FIRST, %eax
    ltr %ax
    ret

# ---------------------------------------------------------------- exceptions and interrupts
.balign 16
vectors:
.set vector, 0
.rept VECTORS
    .balign 16
    .if vector == VECTOR_BREAKPOINT
        jmp service
    .elseif vector == VECTOR_PAGE_FAULT
        jmp page_fault
    .elseif vector == VECTOR_TIMER
        jmp timer
    .elseif vector == VECTOR_SPURIOUS
        iretq
    .else
        .if vector >= 32
            pushq $0
        .elseif ((VECTORS_WITH_ERROR >> vector) & 1) == 0
            pushq $0
        .endif
        pushq $vector
        jmp exception
    .endif
    .set vector, vector + 1
.endr
.balign 16

# int3 from ring 3, service in eax: 0 sleeps until an interrupt has come, 1 forgets the
# translations in the TLB. Anything else is an exception like any other.
service:
    testl %eax, %eax
    jz 1f
    cmpl $1, %eax
    je 2f
    pushq $0
    pushq $VECTOR_BREAKPOINT
    jmp exception
1:  sti
    hlt
    cli
    iretq
2:  pushq %rax
    movq %cr3, %rax
    movq %rax, %cr3
    popq %rax
    iretq

timer:
    lock incq timer_ticks(%rip)
    pushq %rax
    movb $0x20, %al                    # end of interrupt
    outb %al, $0x20
    popq %rax
    iretq

# A page that is not present in the fault window gets the page of the pool that has the same
# distance from the pool's end. Everything else is an error of the guest.
page_fault:
    pushq %rax
    pushq %rcx
    testb $1, 16(%rsp)
    jnz 1f
    movq %cr2, %rax
    subq fault_window(%rip), %rax
    jb 1f
    shrq $12, %rax
    movq fault_pages(%rip), %rcx
    subq %rax, %rcx
    jbe 1f
    decq %rcx
    shlq $12, %rcx
    addq fault_pool(%rip), %rcx
    orq $7, %rcx                       # user, writable, present
    shlq $3, %rax
    addq fault_table(%rip), %rax
    movq %rcx, (%rax)
    lock incq faults_served(%rip)
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq
1:  popq %rcx
    popq %rax
    pushq $VECTOR_PAGE_FAULT
    jmp exception

# Stack: vector, error, rip, cs, rflags, rsp, ss. Says what happened and ends the guest.
exception:
    movq $text_vector, %rsi
    call print_text
    movq (%rsp), %rbx
    call print_hex
    movq $text_error, %rsi
    call print_text
    movq 8(%rsp), %rbx
    call print_hex
    movq $text_rip, %rsi
    call print_text
    movq 16(%rsp), %rbx
    call print_hex
    movq $text_cr2, %rsi
    call print_text
    movq %cr2, %rbx
    call print_hex
    movq $text_end, %rsi
    call print_text
    movb $EXIT_EXCEPTION, %al
    outb %al, $PORT_EXIT
1:  cli
    hlt
    jmp 1b

# rsi: text that ends with a zero byte.
print_text:
    movw $PORT_SERIAL, %dx
1:  movb (%rsi), %al
    testb %al, %al
    jz 2f
    outb %al, %dx
    incq %rsi
    jmp 1b
2:  ret

# rbx: the number, printed with all of its 16 digits.
print_hex:
    movw $PORT_SERIAL, %dx
    movl $16, %ecx
1:  rolq $4, %rbx
    movl %ebx, %eax
    andl $15, %eax
    movb hex_digits(%rax), %al
    outb %al, %dx
    decl %ecx
    jnz 1b
    ret

# ---------------------------------------------------------------- constant data
.section .rodata.ring0, "a", @progbits
hex_digits: .ascii "0123456789abcdef"
text_vector: .asciz "\ngodwit-guest: exception vector=0x"
text_error: .asciz " error=0x"
text_rip: .asciz " rip=0x"
text_cr2: .asciz " cr2=0x"
text_end: .asciz "\n"

# ---------------------------------------------------------------- data
.section .data.ring0, "aw", @progbits
# The identity map. Its entries are made when the image is linked: the first GiB, the page of the
# local APIC, and the way to a directory for each of the first 64 GiB, which Rust fills as needed.
# Accessed and dirty are set from the start, so that nobody has to set them later.
.balign 4096
.globl page_map
page_map:
    .quad page_map_0 + 0x27
    .fill 511, 8, 0
page_map_0:
.set entry, 0
.rept 4
    .quad page_directories_low + 4096 * entry + 0x27
    .set entry, entry + 1
.endr
.rept 60
    .quad page_directories_high + 4096 * (entry - 4) + 0x27
    .set entry, entry + 1
.endr
    .fill 448, 8, 0
.globl page_directories_low
page_directories_low:
.set entry, 0
.rept 512
    .quad 0x200000 * entry + 0xe7
    .set entry, entry + 1
.endr
    .fill 1024, 8, 0
    .fill 503, 8, 0
    .quad 0xfee000ff                   # the local APIC, uncached
    .fill 8, 8, 0

.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff           # CODE32
    .quad 0x00af9b000000ffff           # CODE64
    .quad 0x00cf93000000ffff           # DATA
    .quad 0x00cffb000000ffff           # 32-bit ring-3 code: not used, keeps Linux's order
    .quad 0x00cff3000000ffff           # USER_DATA
    .quad 0x00affb000000ffff           # USER_CODE
    .quad 0
    .fill 2 * VCPUS_MAX, 8, 0          # the TSSes
gdt_end:
    .balign 8
    .word 0, 0, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
    .word 0, 0, 0
idt_pointer:
    .word 16 * VECTORS - 1
    .quad idt

.balign 8
boot_information: .quad 0
boot_protocol: .long 0
.globl ap_index
ap_index: .long 0
# Counters and settings that Rust reads and writes: see machine/ring0.rs.
.globl timer_ticks, faults_served, fault_window, fault_pages, fault_pool, fault_table
timer_ticks: .quad 0
faults_served: .quad 0
fault_window: .quad 0
fault_pages: .quad 0
fault_pool: .quad 0
fault_table: .quad 0

# ---------------------------------------------------------------- data that starts as zero
.section .bss.ring0, "aw", @nobits
.balign 4096
.globl page_directories_high
page_directories_high: .skip 60 * 4096
idt: .skip 16 * VECTORS
.balign 128
tss_area: .skip TSS_STRIDE * VCPUS_MAX
io_bitmap: .skip IO_BITMAP_BYTES
io_bitmap_end: .skip 8
.balign 4096
ring0_stacks: .skip RING0_STACK_BYTES * VCPUS_MAX
.balign 4096
ring3_stacks: .skip RING3_STACK_BYTES * VCPUS_MAX
