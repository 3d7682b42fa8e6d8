/* FreeBSD's, as far as it is used: pointers that the linker gathers. */
#ifndef COMPAT_LINKER_SET_H
#define COMPAT_LINKER_SET_H

#define SET_DECLARE(set, type)						\
	extern type *__start_set_##set[];				\
	extern type *__stop_set_##set[]
#define DATA_SET(set, sym)						\
	static void const *const set_##set##_##sym			\
	    __attribute__((section("set_" #set), used)) = &(sym)
#define SET_BEGIN(set)	(__start_set_##set)
#define SET_LIMIT(set)	(__stop_set_##set)

#endif
