/* Programs in assembly: one of 32-bit code, one that calculates in XMM registers. */
    .intel_syntax noprefix
    .text
    .globl small_32, small_xmm
    .code32
small_32:
    mov esp, eax
    xor esi, esi
1:  inc esi
    lea edi, [esi + 1]
    lea ebp, [esi + 2]
    lea edx, [esi + 3]
    mov ebx, 3000
2:  stc
    lea ecx, [esi + 4]
    jnc 9f
    dec ebx
    jnz 2b
    xor eax, eax
    int 0x80
    lea eax, [esi + 1]
    cmp eax, edi
    jne 9f
    inc eax
    cmp eax, ebp
    jne 9f
    inc eax
    cmp eax, edx
    jne 9f
    .balign 4
    hlt
    test esi, 15
    jnz 1b
    mov eax, 3
    mov edi, 2
    int 0x80
    jmp 1b
9:  mov eax, 2
    int 0x80
    jmp 1b

    .code64
small_xmm:
    xor ebx, ebx
1:  inc rbx
    movq xmm0, rbx
    movq xmm7, rbx
    pslldq xmm7, 3
    movdqa xmm15, xmm0
    mov ecx, 20000
2:  dec ecx
    jnz 2b
    movq rax, xmm0
    cmp rax, rbx
    jne 9f
    movq rax, xmm15
    cmp rax, rbx
    jne 9f
    psrldq xmm7, 3
    movq rax, xmm7
    cmp rax, rbx
    jne 9f
    test bl, 7
    jnz 1b
    xor eax, eax
    syscall
    mov eax, 3
    mov edi, 1
    int 0x80
    jmp 1b
9:  mov eax, 2
    syscall
    jmp 1b
