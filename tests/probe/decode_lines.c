/* Decodes one instruction a line: `BITS HEXBYTES` in; `kind size reg gs base index scale disp rip imm
 * may_matter takes_rsp stores_rdx may_store` out. */
#include <stdio.h>

#include "decode.h"

int main(void)
{
    unsigned bits;
    char hex[64];

    while (scanf("%u %63s", &bits, hex) == 2) {
        uint8_t bytes[16] = {0};
        size_t length = strlen(hex) / 2;
        for (size_t i = 0; i < length && i < 16; i++) {
            unsigned value;
            sscanf(hex + 2 * i, "%2x", &value);
            bytes[i] = (uint8_t)value;
        }
        insn i = decode(bytes, length, bits);
        printf("%d %u %u %d %u %u %u %lld %d %lld %d %u %d %d\n", i.kind, i.size, i.reg, i.gs_memory, i.mem.base, i.mem.index,
               i.mem.scale, (long long)i.mem.disp, i.mem.rip_relative, (long long)i.imm, may_matter(bytes, length, bits),
               takes_rsp(bytes, length, bits), stores(bytes, length, 2, bits), may_store(bytes, length, bits));
    }
    return 0;
}
