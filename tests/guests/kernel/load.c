/* How busy the machine is. Compiled with SSE, see the Makefile. */
#include "kernel.h"

#ifdef BUG_XMM_CLOBBERED_BY_HANDLER
static double load;

/* BUG: floating point in an interrupt handler: XMM0 and XMM1 are the interrupted program's, and nobody saved them. */
void note_load(int busy)
{
    load = load * 0.99 + (busy ? 0.01 : 0.0);
}
#endif
