/* FreeBSD's, as far as it is used: a thread's name. */
#include <pthread.h>
#define pthread_set_name_np(thread, name) ((void)pthread_setname_np(thread, name))
