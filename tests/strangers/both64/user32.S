/* A 32-bit process: EDI is its number. Its own word is at GS:0, its process's at FS:0. */
    .text
    .code32
    .globl user32_begin
user32_begin:
    xorl %eax, %eax
    pushl %eax
    pushl %edi /* 0: number, 4: round */
1:  movl %gs:0, %eax
    cmpl (%esp), %eax
    jne bad
    cmpl $0x1d7, %fs:0
    jne bad
    leal 1(%eax), %ebx
    leal 2(%eax), %ecx
    leal 3(%eax), %edx
    leal 4(%eax), %esi
    leal 5(%eax), %ebp
    movl $20000, %edi
2:  stc
    leal (%ecx), %ecx
    jnc bad
    decl %edi
    jnz 2b
    call check
    subl $2, %ecx
    cmpl %eax, %ecx
    jne bad
    incl 4(%esp)
    xorl %eax, %eax
    int $0x80
    cmpl (%esp), %eax
    jne bad
    call check
    xorl %eax, %eax
    stc
    syscall
    jnc bad
    cmpl (%esp), %eax
    jne bad
    call check
    testl $3, 4(%esp)
    jnz 1b
    ud2
    movl $1, %eax
    movl $1, %ebx
    testl $4, 4(%esp)
    jz 3f
    movl $6, %eax
    syscall
    jmp 1b
3:  int $0x80
    jmp 1b

check: /* EBX, EDX, ESI and EBP against EAX */
    pushl %ebx
    subl $1, %ebx
    cmpl %eax, %ebx
    popl %ebx
    jne bad
    pushl %edx
    subl $3, %edx
    cmpl %eax, %edx
    popl %edx
    jne bad
    pushl %esi
    subl $4, %esi
    cmpl %eax, %esi
    popl %esi
    jne bad
    pushl %ebp
    subl $5, %ebp
    cmpl %eax, %ebp
    popl %ebp
    jne bad
    ret
bad:
    movl $2, %eax
    int $0x80
    jmp bad
